"""One reader: a folder that looks like a checkout, a shell, a Python, and servers of their own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_pages import ROOT, Block
from doc_shapes import differences, missing_lines
from doc_shim import is_alive

from adapters_cache.sharing.origins import credentials
from server.cli.settings import SECTIONS, load_config
from server.tenants import read_tenants

HERE = Path(__file__).parent
OVER = "the block is over:"
COPIED = ("examples", "protos", "deploy")
LINKED = ("tests/recorded",)
SHELLS = ("bash", "sh", "shell", "console")
# What would change the machine that the tests run on, or needs another one.
OUTSIDE = re.compile(
    r"(?:^|[;&|(\s])(?:sudo|systemctl|docker|kubectl|helm|make|pip3?|npm|apt|apt-get)\s"
    r"|(?<![\w.~/-])/(?:boot|etc|home|mnt|opt|root|srv|usr|var)/",
    re.MULTILINE,
)


class Wrong(Exception):
    """A page says something that is not so."""


@dataclass
class Output:
    """Of the block before."""

    text: str = ""
    everything: str = ""


@dataclass
class Session:
    """demo   real ports of the server with the demo adapters, by those that pages name
    hub    starts what stands for the hub, and gives its address
    """

    folder: Path
    zygote: str
    demo: dict[str, int]
    hub: Callable[[], str]
    before: Output = field(default_factory=Output)
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def __post_init__(self) -> None:
        self._own = self.folder.parent / f"{self.folder.name}.docs"
        self._own.mkdir()
        self._state = self._own / "ports.json"
        self._state.write_text(json.dumps({"ports": self.demo, "pids": {}}))
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.folder / name)
        for name in LINKED:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).symlink_to(ROOT / name)
        self._write_tools(self.folder / ".venv" / "bin")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ADAPTERD_", "HF_"))},
            "HOME": str(self._own),
            "COLUMNS": "120",
            "LC_ALL": "C.UTF-8",
            "TERM": "dumb",
            "HF_HUB_OFFLINE": "1",
            "DOC_STATE": str(self._state),
            "DOC_ZYGOTE": self.zygote,
        }
        self._environment.pop("VIRTUAL_ENV", None)
        self._shell: Shell | None = None

    def run(self, block: Block) -> None:
        """Raises Wrong."""
        if block.kind == "stand-in":
            return self._stand_in(block.value)
        if block.kind == "output":
            return self._compare_output(block)
        text = self._with_ports(block.text)
        if block.kind == "file":
            (self.folder / block.value).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / block.value).write_text(block.text)
        if block.language in SHELLS:
            self.before = self._in_shell(block, text)
        elif block.language == "python":
            if block.kind != "file":
                self.before = self._in_python(block, text)
        elif block.language == "toml":
            self._load_toml(block)
        elif block.language == "json":
            self._compare_json(block)
        elif block.language in ("yaml", "yml"):
            list(yaml.safe_load_all(block.text))
        elif block.kind != "file":
            raise Wrong(f"nothing runs {block.language!r}")

    def close(self) -> None:
        if self._shell is not None:
            self._shell.close()
        pids = json.loads(self._state.read_text())["pids"].values()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for pid in pids:
            while is_alive(pid):
                time.sleep(0.02)

    def _write_tools(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "activate").write_text("")
        tools = {
            "adapterd": f'#!/bin/sh\nexec {sys.executable} -SE {HERE / "doc_shim.py"} "$@"\n',
            "python": f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n',
        }
        for name, text in tools.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)

    def _with_ports(self, text: str) -> str:
        for nominal, real in json.loads(self._state.read_text())["ports"].items():
            text = re.sub(rf"(?<![\d.]){nominal}(?!\d)", str(real), text)
        return text

    def _stand_in(self, what: str) -> None:
        if what == "hub":
            address = self.hub()
            self._environment |= {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
            return
        source, separator, target = what.partition(" at ")
        if not separator:
            raise Wrong(f"stand-in {what!r} is neither 'hub' nor 'PATH at PATH'")
        shutil.copytree(ROOT / source, self.folder / target, dirs_exist_ok=True)

    def _in_shell(self, block: Block, text: str) -> Output:
        if what := outside_of(block):
            raise Wrong(f"{what!r} is outside of a page's folder, and is not run")
        if self._shell is None:
            path = f"{self.folder / '.venv' / 'bin'}:{self._environment['PATH']}"
            self._shell = Shell(self.folder, self._own, {**self._environment, "PATH": path})
        is_console = block.language == "console"
        script = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ ")) if is_console else text
        code, output = self._shell.run(script, may_fail=block.kind == "fails")
        if (code != 0) != (block.kind == "fails"):
            raise Wrong(f"exit code {code}\n{output.everything}")
        if is_console:
            _require_lines([line for line in text.splitlines() if not line.startswith("$ ")], output)
        return output

    def _in_python(self, block: Block, text: str) -> Output:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.chdir(self.folder):
            try:
                # from its own line on, so that a traceback names the page's
                exec(compile("\n" * block.line + text, str(ROOT / block.page), "exec"), self.names)
            except Exception as error:
                if block.kind != "fails":
                    raise Wrong(f"{type(error).__name__}: {error}") from error
                print(error, file=shown)
            else:
                if block.kind == "fails":
                    raise Wrong("nothing is raised")
        return Output(shown.getvalue(), shown.getvalue())

    def _compare_output(self, block: Block) -> None:
        _require_lines(block.text.splitlines(), self.before)

    def _compare_json(self, block: Block) -> None:
        shown = json.loads(block.text)
        if block.kind == "file":
            return
        try:
            real = json.loads(self.before.text)
        except ValueError as error:
            raise Wrong(f"what came before is no JSON:\n{self.before.everything}") from error
        if found := list(differences(shown, real)):
            raise Wrong("\n".join(found) + f"\n{self.before.text}")

    def _load_toml(self, block: Block) -> None:
        """By whatever the server reads such a file with."""
        path = self._own / "shown.toml"
        path.write_text(block.text)
        tables = tomllib.loads(block.text)
        if tables.keys() <= SECTIONS.keys():
            load_config(path, {})
        elif any(":" in name for name in tables):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ADAPTERD_ORIGINS", str(path))
                for table in tables.values():
                    for value in table.values():
                        patch.setenv(str(value).removeprefix("env:"), "secret")
                assert all(credentials(name) for name in tables)
        else:
            read_tenants(path)


def outside_of(block: Block) -> str:
    """What of a shell's block is outside of the page's folder; empty if nothing is."""
    found = OUTSIDE.search(re.sub(r"(?:^|\s)#.*", "", block.text, flags=re.MULTILINE))
    return found[0].strip() if found and block.language in SHELLS else ""


class Shell:
    """One bash for all blocks of a page, so that variables and folders stay."""

    def __init__(self, folder: Path, own: Path, environment: dict[str, str]) -> None:
        self._own = own
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, *, may_fail: bool = False) -> tuple[int, Output]:
        """Exit code, and what it said. The shell ends with what fails, unless that is expected."""
        block, out, errors = (self._own / name for name in ("block.sh", "out", "errors"))
        block.write_text(script)
        source = f"source {block} < /dev/null > {out} 2> {errors}"
        line = f"set +e; ( set -euo pipefail; {source} )" if may_fail else f"set -euo pipefail; {source}"
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\ncode=$?; wait; echo '{OVER}' $code\n")
        self._process.stdin.flush()
        code = None
        for said in self._process.stdout:
            if said.startswith(OVER):
                code = int(said.removeprefix(OVER))
                break
        if code is None:
            code = self._process.wait()
        text = out.read_text()
        return code, Output(text, text + errors.read_text())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)


def _require_lines(lines: list[str], output: Output) -> None:
    if missing := missing_lines("\n".join(lines), output.everything):
        raise Wrong("\n".join(["these lines do not come back:", *missing, "but", output.everything]))


@contextlib.contextmanager
def zygote(folder: Path) -> Iterator[str]:
    """Its address. It imports while this returns; the first command waits for it."""
    address = str(folder / "zygote")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "doc_zygote.py"), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=folder,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the zygote ended")
        try:
            yield address
        finally:
            process.stdin.close()
