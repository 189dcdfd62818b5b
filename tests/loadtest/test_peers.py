"""The comparison with other libraries: its driver with made-up workers, and those that need no other environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from make_bases import save_base
from typer.testing import CliRunner

from loadtest import workload
from loadtest.__main__ import app
from loadtest.peers.contenders import PEERS, Contender
from loadtest.peers.driver import PeersBench
from loadtest.peers.material import LORA
from loadtest.peers.plan import Plan
from loadtest.peers.report import print_table, write_report
from loadtest.peers.results import PeersReport, Row, distance, nearest, rate_ratio

FAKE = Path(__file__).parent / "fake_peer.py"
INF = float("inf")


def fake(mode: str, *, is_batched: bool = True) -> Contender:
    return Contender(mode, f"the {mode} one", LORA, FAKE, mode, is_batched=is_batched, targets={"cpu": 3.0})


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """On a tiny base, with ours made up too."""
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)  # what the base takes
    monkeypatch.setattr("loadtest.peers.contenders.OURS", FAKE)
    monkeypatch.setenv("FAKE_PEER_LOG", str(tmp_path / "log"))
    base = str(save_base(tmp_path / "base"))
    return Plan(base, (), 3, 100, (32, 64), 2, 1, "cpu", "float32", 1, 20.0, tmp_path / "environments")


def compared(plan: Plan, *contenders: Contender) -> dict[str, Row]:
    plan = replace(plan, peers=tuple(contender.key for contender in contenders))
    return {row.key: row for row in PeersBench(plan, contenders).run().rows}


def test_everybody_is_timed_in_turn_at_its_best_budget(plan: Plan, tmp_path: Path) -> None:
    rows = compared(plan, fake("good"), fake("single", is_batched=False))
    good, single = rows["good"], rows["single"]
    assert good.ratio == 4.0 and good.seconds == [4.0, 4.0] and good.budget == 32 and good.difference == 0.0
    assert single.ratio == 2.0 and single.budget == 0
    tried = ["packed 32", "packed 64", "good 32", "good 64", "single 0"]
    assert (tmp_path / "log").read_text().splitlines() == tried + ["packed 32", "good 32", "single 0"] * 2


def test_other_answers_are_reported_and_not_timed(plan: Plan, tmp_path: Path) -> None:
    wrong = compared(plan, fake("wrong"))["wrong"]
    assert wrong.error.startswith("answers differ by 0.25") and wrong.ratio is None and not wrong.seconds
    assert "wrong" not in (tmp_path / "log").read_text()


def test_a_peer_that_crashes_or_hangs_is_a_row_with_its_error(plan: Plan) -> None:
    lost = Contender("lost", "the lost one", LORA, Path("not/there.py"), "lost")
    rows = compared(replace(plan, timeout_s=3.0), fake("crashes"), fake("hangs"), lost, fake("good"))
    assert rows["crashes"].error == "ended with exit status 1: out of luck"
    assert rows["hangs"].error == "no reply to 'answer' within 3 s"
    assert "not/there.py" in rows["lost"].error
    assert rows["good"].ratio == 4.0  # the others go on


def test_what_was_not_answered_is_not_counted(plan: Plan) -> None:
    rows = compared(plan, fake("partial"))
    assert rows["partial"].num_tokens < rows[""].num_tokens
    assert rows["partial"].ratio == pytest.approx(2.0 * rows[""].num_tokens / rows["partial"].num_tokens)


def test_peers_are_not_compared_with_failed_ours(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadtest.peers.contenders.OURS", Path("not/there.py"))
    rows = compared(plan, fake("good"))
    assert "not/there.py" in rows[""].error and rows["good"].error.startswith("nothing to compare with")


def test_ratio_is_of_the_runs_of_one_round() -> None:
    assert rate_ratio([1.0, 2.0, 4.0], 100, [3.0, 4.0, 4.0], 100) == 2.0
    assert rate_ratio([1.0], 100, [1.0], 50) == 2.0


def test_distance_is_infinite_where_answers_cannot_be_compared() -> None:
    assert distance([[1.0, 3.0], None], [[1.0, 1.0], [0.0, 0.0]]) == 1.0
    assert nearest([[1.0], [2.0]], [[1.5], [9.0]]) == pytest.approx(0.2)
    for answers in ([[1.0]], [None, None], [[1.0, 2.0], [float("nan"), 0.0]]):
        assert distance(answers, [[1.0, 1.0], [0.0, 0.0]]) == INF


def test_report_shows_every_row_with_its_target_or_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("", "ours", LORA, {"torch": "2"}, None, None, None, 512, 100, 3, 1 << 20, 1 << 30, [1.0], "")
    peer = replace(row, key="p", title="peer", ratio=2.5, target=2.0, difference=1e-6, seconds=[2.5])
    failed = replace(row, key="f", title="failed", target=2.0, seconds=[], error="ImportError: no such thing")
    report = PeersReport({"device": "a CPU", "dtype": "float32"}, "the command", "some work", [row, peer, failed])
    write_report(tmp_path, report)
    print_table(report)
    ran, did_not = json.loads((tmp_path / "peers.json").read_text())["figures"]
    assert ran == {"name": "ours / peer", "value": 2.5, "target": ">= 2", "is_met": True}
    assert did_not["name"] == "ours / failed: ImportError: no such thing" and not did_not["is_met"]
    text = (tmp_path / "peers.md").read_text()
    assert "| peer | 40 | 2.50 (>= 2) | 1e-06 | 512 | 1.0 | 1,024.0 |" in text and "`the command`" in text
    for shown in (text, (tmp_path / "peers.html").read_text()):
        assert "failed did not run: ImportError: no such thing" in shown
    assert (tmp_path / "peers.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "2.50 (>= 2)" in printed and "failed: ImportError: no such thing" in printed


def test_unknown_peer_is_refused_with_those_that_are_known() -> None:
    result = CliRunner().invoke(app, ["peers", "--peer", "nobody"])
    assert result.exit_code == 2 and "adapterhub-switch" in result.output


def test_workers_of_this_environment_give_the_same_answers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)
    rows = compared(replace(plan, timeout_s=100.0), *(peer for peer in PEERS if peer.key in ("transformers", "full")))
    assert [row.error for row in rows.values()] == ["", "", ""]
    assert all(row.ratio and row.difference is not None and row.difference < 1e-5 for row in rows.values() if row.key)
    full = rows["full"]
    assert full.num_tasks == 1 and full.num_tokens < rows["transformers"].num_tokens  # one fits, however large


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_foreign_libraries_give_the_same_answers(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs both where they are not yet."""
    monkeypatch.undo()
    monkeypatch.setattr(workload, "MAX_LENGTH", 30)
    from loadtest.peers.environments import DEFAULT_FOLDER

    foreign = [peer for peer in PEERS if peer.environment]
    rows = compared(replace(plan, timeout_s=120.0, environments=DEFAULT_FOLDER), *foreign)
    assert {key: row.error for key, row in rows.items()} == dict.fromkeys(rows, "")
    assert all(rows[peer.key].ratio for peer in foreign)


@pytest.mark.parametrize("name", sorted({peer.script.name for peer in PEERS if peer.environment}) + ["protocol.py"])
def test_workers_of_other_environments_import_nothing_of_ours(name: str) -> None:
    from test_layout import OURS, imports_of

    script = PEERS[0].script.with_name(name)
    assert not {module.partition(".")[0] for module in imports_of(script.read_text())} & set(OURS)
