"""adapterd demo: serve the example adapters in this process and send them one mixed stream."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.options import Base, Device
from server.cli.output import reported
from server.cli.serve import set_up_logging, stop_signal
from server.cli.settings import load_config
from server.errors import InvalidInput

if TYPE_CHECKING:
    from adapterd import Error
    from adapterd.v1.inference_pb2 import PredictResponse
    from server.app import App
    from server.config import ServerConfig

NAME = "demo"
EXAMPLE = "adapterd demo --once"
EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the demo's texts. `expect` names labels that the answer must give; empty: any answer will do."""

    adapter: str
    text: str
    text_pair: str | None
    expect: frozenset[str]


@dataclass(frozen=True, slots=True)
class Row:
    case: Case
    outcome: PredictResponse | Error
    milliseconds: float


def run(
    once: Annotated[bool, typer.Option("--once", help="Stop after the table instead of serving on.")] = False,
    adapters: Annotated[Path, typer.Option(help="Folder of adapters.")] = EXAMPLES / "adapters",
    texts: Annotated[Path, typer.Option(help="Lines of adapter, text, expect.")] = EXAMPLES / "demo.jsonl",
    base: Base = None,
    device: Device = None,
    port: Annotated[int | None, typer.Option(help="gRPC; with --once a free one.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Metrics; with --once a free one.")] = None,
) -> None:
    """Start the server with the example adapters, send a mixed stream to all of them, show what came back."""
    import uvloop

    set_up_logging(logging.WARNING)
    free = 0 if once else None
    overrides = {
        "model.base": base,
        "model.device": device,
        "cache.adapters": [adapters],
        "api.port": free if port is None else port,
        "api.http_port": free if http_port is None else http_port,
    }
    with reported():
        cases = list(read_cases(texts))
        exit_code = uvloop.run(_demo(load_config(None, overrides), cases, once))
    raise typer.Exit(exit_code)


def read_cases(path: Path) -> Iterator[Case]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read; name a file with --texts") from error
    if not any(line.strip() for line in lines):
        raise InvalidInput(f"{path} holds no texts; name another file with --texts")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _read_case(f"{path}, line {number}", line)


def _read_case(place: str, line: str) -> Case:
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise InvalidInput(f"{place} is not JSON: {error}") from error
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in ("adapter", "text")):
        raise InvalidInput(f'{place} is not of the form {{"adapter": "...", "text": "..."}}')
    expect, pair = fields.get("expect", []), fields.get("text_pair")
    labels = [expect] if isinstance(expect, str) else expect
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidInput(f"{place}: expect {expect!r} is neither a label nor a list of labels")
    if not isinstance(pair, str | None):
        raise InvalidInput(f"{place}: text_pair {pair!r} is not a text")
    return Case(fields["adapter"], fields["text"], pair, frozenset(labels))


async def _demo(config: ServerConfig, cases: list[Case], once: bool) -> int:
    from server.app import App
    from server.cli.demo_table import print_header, print_how_to_call, print_rows

    stop = stop_signal()
    app = App(config)
    await app.start()
    try:
        print_header(app.base)
        rows = await _unless(stop, _ask(app, cases))
        if rows is None:
            return 1
        num_wrong = print_rows(rows)
        if not once:
            print_how_to_call(cases[0], app.grpc_port, app.http_port)
            await stop.wait()
    finally:
        await app.stop()
    return 1 if num_wrong else 0


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, list[Row]]) -> list[Row] | None:
    """What `work` gives, or None if `stop` is set first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        return working.result()
    working.cancel()
    await asyncio.wait({working})
    return None


async def _ask(app: App, cases: list[Case]) -> list[Row]:
    """Send all cases as one stream over the port; rows in the order of the cases."""
    from adapterd import AsyncClient, predict_request

    sent_at: dict[str, float] = {}
    rows: dict[str, Row] = {}

    def items() -> Iterator[tuple[str, Any]]:
        for index, case in enumerate(cases):
            sent_at[str(index)] = time.perf_counter()
            yield str(index), predict_request(case.adapter, case.text, text_pair=case.text_pair)

    async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        async for adapter in client.list():  # so that the table shows serving, not reading files
            await client.load(adapter.name)
        async for item, outcome in client.predict_stream(items()):
            milliseconds = (time.perf_counter() - sent_at[item]) * 1000
            rows[item] = Row(cases[int(item)], outcome, milliseconds)
    return [rows[str(index)] for index in range(len(cases))]
