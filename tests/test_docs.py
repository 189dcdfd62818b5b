"""What the documents name exists, what exists is documented, and what they show runs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from adapterd import Client
from server.cli.demo import Row, read_cases
from server.cli.demo_table import is_right
from server.cli.settings import SECTIONS
from server.core import Tenant
from server.metrics import Metrics
from server.tenants import read_tenants

ROOT = Path(__file__).parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()


def test_settings_shown_are_all_settings_with_their_defaults() -> None:
    block = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)[0]
    shown = tomllib.loads(block)
    for name, section in SECTIONS.items():
        defaults = {field.name: getattr(section(), field.name) for field in fields(section)}
        assert shown[name].keys() == defaults.keys()
        free = {"base", "adapters", "compositions"}
        assert {k: v for k, v in shown[name].items() if k not in free} == {
            k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items() if k not in free
        }


def test_tenants_shown_use_every_key_and_can_be_read(tmp_path: Path) -> None:
    block = re.findall(r"```toml\n(.*?)```", OPERATIONS, re.DOTALL)[1]
    (tmp_path / "tenants.toml").write_text(block)
    assert [tenant.name for tenant in read_tenants(tmp_path / "tenants.toml")] == ["acme", "operator"]
    keys = {key for table in tomllib.loads(block).values() for key in table}
    assert keys == {field.name for field in fields(Tenant)} - {"name", "index"}


def test_metrics_shown_are_all_metrics() -> None:
    shown = set(re.findall(r"`(adapterd_\w+)", OPERATIONS))
    suffix = {"counter": "_total", "info": "_info"}
    exported = {metric.name + suffix.get(metric.type, "") for metric in Metrics().registry.collect()}
    assert shown == exported


def test_tests_that_hold_the_tables_of_adapters_exist() -> None:
    text = (ROOT / "docs" / "adapters.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btest_\w+(?:\.py)?", text))
    assert len(named) > 30
    missing = [n for n in named if n not in files and not any(f"def {n}(" in source for source in files.values())]
    assert missing == []


def test_folders_shown_in_the_readme_exist() -> None:
    [tree] = re.findall(r"## Layout\n\n```\n(.*?)```", README, re.DOTALL)
    shown = {line.split("/")[0] for line in tree.splitlines()}
    assert shown <= folders(), shown - folders()


def folders() -> set[str]:
    """Those of the repository; of a checkout only what git knows, because an empty folder is nobody else's."""
    if not (ROOT / ".git").exists():
        return {path.name for path in ROOT.iterdir() if path.is_dir()}
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.split("/")[0] for line in known.splitlines() if "/" in line}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server with the demo adapters, started as the documents say."""
    command = [sys.executable, "-m", "server", "serve", "--adapters", "examples/adapters", "--port", "0"]
    with subprocess.Popen(
        [*command, "--http-port", "0"], cwd=ROOT, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as server:
        assert server.stderr is not None
        shown = []
        for line in server.stderr:
            shown.append(line)
            if found := re.search(r"grpc_port=(\d+)", line):
                break
        else:
            pytest.fail("the server ended before it served:\n" + "".join(shown))
        yield int(found[1])
        server.terminate()
        server.stderr.read()
        assert server.wait(30) == 0


def test_readme_commands_run(port: int) -> None:
    commands = re.findall(r"^\.venv/bin/adapterd (.+)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', command)]
        done = subprocess.run(
            [sys.executable, "-m", "server", *arguments, "--server", f"127.0.0.1:{port}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stdout, done.stderr


def test_readme_client_example_runs(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block.replace("127.0.0.1:50051", f"127.0.0.1:{port}"), {})
    shown = capsys.readouterr().out
    assert "PlayMusic" in shown and "GetWeather" in shown


def test_demo_texts_are_answered_as_expected(port: int) -> None:
    cases = list(read_cases(ROOT / "examples" / "demo.jsonl"))
    assert sum(bool(case.expect) for case in cases) >= 8
    with Client(f"127.0.0.1:{port}") as client:
        for case in cases:
            row = Row(case, client.predict(case.adapter, case.text, text_pair=case.text_pair), 0.0)
            assert is_right(row), row


def test_tests_that_hold_the_promises_of_security_exist() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert [name for name in named if not any(f"def {name}(" in source for source in sources)] == []
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", text))
