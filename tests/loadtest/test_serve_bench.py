"""The serving benchmark on a tiny base: a server, a generator and an engine, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_bases import save_base
from make_tokenizer import save_tokenizer
from queue_model import answered

from loadtest.arrivals import Catalog, schedule
from loadtest.children import serving
from loadtest.closed_loop import Flow
from loadtest.latency import Objective, Row, summarize
from loadtest.scenarios import COLD, SCENARIOS, ZIPF, Plan
from loadtest.serve import Raw, Saturation, ServeReport, run
from loadtest.serve_report import print_report, write_report
from loadtest.texts import load_tokenizer, make_texts

FLOW = Flow(20_000.0, 625.0, 0, 4096.0, 4096, (32, 32))


@pytest.mark.timeout(300)  # three processes load torch
def test_everything_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_tokenizer(save_base(tmp_path / "tiny")))
    plan = Plan(
        base=base,
        device="cpu",
        num_adapters=3,
        objective=Objective(2.0),
        scenarios=(ZIPF, COLD),
        seconds=2.5,
        step_s=0.5,
        rounds=1,
        settings=("scheduler.max_batch_tokens=320", "model.num_threads=1"),
    )
    report, raw = run(plan)
    [flow], [alone] = report.saturation.served, report.saturation.offline_tokens_per_s
    assert flow.lengths == (32, 32) and flow.max_batch_tokens == 320 and flow.num_errors == 0
    assert report.figures[0].value == pytest.approx(flow.tokens_per_s / alone)
    assert report.sweep and report.highest_rate is not None
    assert [row.name for row in report.scenarios] == [ZIPF, COLD] == list(raw)
    assert all(row.num_requests > 0 and not row.errors and row.tokens_per_s > 0 for row in report.scenarios)
    assert all(row.stages_s["compute"] > 0 and row.batch["adapters"] >= 1 for row in report.scenarios)
    print_report(report)
    write_report(tmp_path / "out", report, raw)
    assert "served over gRPC / offline" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "serve.json").read_text())["plan"]["num_adapters"] == 3


@pytest.fixture(scope="module")
def measured() -> tuple[ServeReport, Raw]:
    """What a server that is a formula would have given."""
    plan, catalog = Plan(), Catalog(32, 16, 10)
    report = ServeReport(plan, {"device": "a CPU"}, "the <command>", Saturation((FLOW,), (25_000.0,)))
    raw: Raw = {}
    for seed, (name, traffics) in enumerate(SCENARIOS.items()):
        raw[name] = answered(schedule(traffics, 200.0, 3.0, catalog, seed))
        report.scenarios.append(summarize(name, raw[name], 3.0, plan.objective))
    raw["2 % cold"].code[::7] = 14
    report.scenarios[-2] = summarize("2 % cold", raw["2 % cold"], 3.0, plan.objective)
    report.sweep = [_swept(rate, plan) for rate in (100.0, 400.0, 600.0)]
    report.highest_rate = 100.0
    return report, raw


def _swept(rate: float, plan: Plan) -> Row:
    outcomes = answered(schedule(SCENARIOS[ZIPF], rate, 3.0, Catalog(32, 0, 10), seed=1), lag_s=0.02 * (rate == 400))
    return summarize(f"{rate:g}/s", outcomes, 3.0, plan.objective)


def test_report_says_what_was_found_in_every_form(measured: tuple[ServeReport, Raw], tmp_path: Path) -> None:
    write_report(tmp_path, *measured)
    page, text = (tmp_path / "serve.html").read_text(), (tmp_path / "serve.md").read_text()
    for form in (page, text):
        assert "Up to 100 requests/s hold" in form and "20,000 tokens/s, 0.80 of" in form
        assert "400/s (generator late)" in form and "UNAVAILABLE" in form and "∞" in form
        assert all(name in form for name in SCENARIOS)
    assert "the &lt;command&gt;" in page and page.count("<svg") == 5 and "✗ missed" not in page
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert len(pictures) == 5 and all(f"({name})" in text for name in pictures)
    assert json.loads((tmp_path / "serve.json").read_text())["scenarios"][-2]["latency_s"]["p99"] is None


def test_ratio_is_the_median_of_the_rounds_own() -> None:
    assert Saturation((FLOW, FLOW, FLOW), (20_000.0, 25_000.0, 40_000.0)).ratio == 0.8
    assert Saturation((FLOW,)).ratio is None


def test_command_repeats_the_plan() -> None:
    plan = Plan(server="host:1", rate=20.0, scenarios=(COLD,), settings=("a.b=1",))
    for part in ("--server host:1", "--rate 20", f'--scenario "{COLD}"', "--set a.b=1"):
        assert part in plan.command
    assert "--device" not in plan.command and "--scenario" not in Plan().command


def test_texts_have_the_tokens_they_are_asked_for(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    texts = make_texts(tokenizer, [3, 8, 32, 32], seed=1)
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == [3, 8, 32, 32]
    assert texts == make_texts(tokenizer, [3, 8, 32, 32], seed=1) and texts[2] != texts[3]


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(RuntimeError, match="unknown key api.sport"), serving("--set", "api.sport=1"):
        pass
