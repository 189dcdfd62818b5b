"""The verbs that talk to a server, and the demo."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from server.app import App
from server.cli import app as command_line


def adapterd(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(command_line, arguments, input=stdin, env={"COLUMNS": "120"})


async def call(app: App, *arguments: str, stdin: str | None = None) -> Result:
    """A verb against the running server."""
    return await asyncio.to_thread(adapterd, *arguments, "--server", f"127.0.0.1:{app.grpc_port}", stdin=stdin)


async def test_predict_prints_a_row_per_text(app: App) -> None:
    done = await call(app, "predict", "intent", "first [text]", "second text")
    assert done.exit_code == 0
    assert "first [text]" in done.stdout and "second text" in done.stdout and "LABEL_" in done.stdout


async def test_predict_reads_lines_and_prints_json(app: App) -> None:
    done = await call(app, "predict", "intent", "--json", "--top-k", "1", stdin="one\n\ntwo\n")
    reply = json.loads(done.stdout)
    assert [len(result["classification"]["labels"]) for result in reply["results"]] == [1, 1]


async def test_predict_takes_a_pair(app: App) -> None:
    done = await call(app, "predict", "spans", "who", "--pair", "abc did")
    assert done.exit_code == 0, done.output


async def test_a_failed_predict_is_one_line_and_exit_1(app: App) -> None:
    done = await call(app, "predict", "missing", "x")
    assert done.exit_code == 1
    assert done.stderr.startswith("adapterd: NOT_FOUND: ") and done.stderr.count("\n") == 1


async def test_list_shows_every_adapter(app: App) -> None:
    shown = (await call(app, "list")).stdout
    assert all(name in shown for name in ("embed", "intent", "topics", "tags", "spans", "origin"))
    rows = (await call(app, "list", "--json", "--prefix", "in")).stdout.splitlines()
    assert [json.loads(row)["name"] for row in rows] == ["intent"]


async def test_health_is_exit_0(app: App) -> None:
    assert (await call(app, "health")).exit_code == 0


@pytest.mark.parametrize(("expect", "exit_code"), [("LABEL_0", 1), ("LABEL_1", 0), ("LABEL_2", 1)])
def test_demo_once_prints_the_table_and_fails_on_a_wrong_answer(
    base_path: Path, adapters_path: Path, tmp_path: Path, expect: str, exit_code: int
) -> None:
    texts = tmp_path / "demo.jsonl"
    cases = [
        {"adapter": "intent", "text": "some text", "expect": expect},
        {"adapter": "topics", "text": "other"},
    ]
    texts.write_text("\n".join(json.dumps(case) for case in cases))
    options = ["--base", str(base_path), "--adapters", str(adapters_path), "--texts", str(texts)]
    done = adapterd("demo", "--once", "--device", "cpu", *options)
    assert done.exit_code == exit_code, done.output
    assert "some text" in done.stdout and "other" in done.stdout


def test_demo_fails_when_an_adapter_is_missing(base_path: Path, adapters_path: Path, tmp_path: Path) -> None:
    texts = tmp_path / "demo.jsonl"
    texts.write_text('{"adapter": "missing", "text": "x"}')
    options = ["--base", str(base_path), "--adapters", str(adapters_path), "--texts", str(texts)]
    done = adapterd("demo", "--once", "--device", "cpu", *options)
    assert done.exit_code == 1 and "ADAPTER_NOT_FOUND" in done.stdout
