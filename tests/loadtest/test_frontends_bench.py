from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from wire import make_reply, serve_inference_port

from adapterd import predict_request
from loadtest.callers import Load, callers
from loadtest.frontends import FrontendsReport, Plan, Row, run
from loadtest.frontends_report import write_frontends
from server.core import Reply, Request
from server.errors import AdapterNotFound

PLAN = Plan((2,), num_callers=1, num_connections=2, num_in_flight=2, seconds=0.3, rounds=1)


async def test_callers_count_the_calls_that_were_answered() -> None:
    seen: list[str] = []

    async def infer(request: Request) -> Reply:
        seen.append(request.adapter)
        return make_reply(request)

    messages = tuple(predict_request(name, "x").SerializeToString() for name in ("a", "b"))
    async with serve_inference_port(infer) as port:
        load = Load(f"127.0.0.1:{port}", messages, num_connections=2, num_in_flight=2, seconds=0.2)
        with callers(2) as processes:
            counts = await asyncio.to_thread(processes.run, load)
    assert sum(count.num_calls for count in counts) == len(seen) > 8
    assert set(seen) == {"a", "b"} and all(count.seconds >= 0.2 and count.cpu_s > 0 for count in counts)


async def test_a_call_that_fails_ends_the_run() -> None:
    async def infer(request: Request) -> Reply:
        raise AdapterNotFound("no adapter")

    async with serve_inference_port(infer) as port:
        load = Load(f"127.0.0.1:{port}", (predict_request("a", "x").SerializeToString(),), 1, 1, 0.2)
        with callers(1) as processes, pytest.raises(Exception, match="no adapter"):
            await asyncio.to_thread(processes.run, load)


def test_report_compares_rounds_pairwise_and_says_what_a_core_allows(tmp_path: Path) -> None:
    one = Row(0, [100.0, 200.0, 400.0], [500.0] * 3, [0.0] * 3, [200.0] * 3)
    two = Row(2, [150.0, 400.0, 600.0], [100.0] * 3, [600.0] * 3, [200.0] * 3)
    assert two.ratio(one) == 1.5
    report = FrontendsReport(replace(PLAN, rounds=3), {"device": "x"}, 2, "python -m loadtest frontends", (one, two))
    write_frontends(tmp_path, report)
    text = (tmp_path / "frontends.md").read_text()
    assert "| one process | 200 | 1.00 | 500 |  | 200 | 2,000 |" in text
    assert "| engine + 2 fronts | 400 | 1.50 | 100 | 600 | 200 | 3,333 |" in text
    assert json.loads((tmp_path / "frontends.json").read_text())["rows"][1]["frontends"] == 2


@pytest.mark.slow
def test_the_benchmark_runs_on_servers_of_its_own() -> None:
    report = run(PLAN)
    one, two = report.rows
    assert (one.frontends, two.frontends) == (0, 2)
    assert min(one.calls_per_s + two.calls_per_s) > 0 and one.fronts_us == [0.0]
    assert two.fronts_us[0] > 0 and two.engine_us[0] > 0
    assert report.num_cores == os.cpu_count()
