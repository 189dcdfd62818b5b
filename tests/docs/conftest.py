"""The server with the demo adapters that most pages ask, and what commands run in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from doc_hub import hub_address
from doc_pages import ROOT
from doc_session import HERE, Session, zygote
from doc_shim import stop


@pytest.fixture(scope="session")
def zygote_address() -> Iterator[str]:
    # pytest's own folders have names that are too long for a socket
    with TemporaryDirectory() as folder, zygote(Path(folder)) as address:
        yield address


@pytest.fixture(scope="session")
def demo_ports(zygote_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, int]]:
    """Of a server that is started as the pages say, by the ports that they name."""
    folder = tmp_path_factory.mktemp("demo")
    state = folder / "ports.json"
    state.write_text(json.dumps({"ports": {"50051": 0, "9090": 0}, "pids": {}}))
    environment = {**os.environ, "DOC_STATE": str(state), "DOC_ZYGOTE": zygote_address}
    command = [sys.executable, str(HERE / "doc_shim.py"), "serve", "--adapters", "examples/adapters"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    started = json.loads(state.read_text())
    yield started["ports"]
    stop(started["pids"]["50051"])


@pytest.fixture
def session(zygote_address: str, demo_ports: dict[str, int], tmp_path: Path) -> Iterator[Session]:
    with ExitStack() as stack:
        (tmp_path / "checkout").mkdir()
        own = Session(tmp_path / "checkout", zygote_address, demo_ports, lambda: stack.enter_context(hub_address()))
        try:
            yield own
        finally:
            own.close()
