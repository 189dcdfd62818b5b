"""The benchmark of fleets, with few adapters and little time; the library that swaps is made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.random import default_rng

from loadtest.fleet import bench, hotswap
from loadtest.fleet.bench import Plan
from loadtest.fleet.policies import compare
from loadtest.fleet.popularity import POPULARITY
from loadtest.fleet.report import print_report, write_report

FAKE = """
import json, sys
job = json.load(open(sys.argv[1]))
assert len(job["names"]) > 1 and job["kept"] == 25
json.dump({"per_s": 2.0}, open(job["output"], "w"))
"""


def test_every_part_is_measured_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(FAKE)
    monkeypatch.setattr(hotswap, "WORKER", worker)
    monkeypatch.setattr(bench, "python_of", lambda *_: Path(sys.executable))
    monkeypatch.setattr(bench, "compare", lambda: compare(100, 2_000))
    plan = Plan(num=60, num_host=30, num_device=12, num_large=4, seconds=0.3, rounds=1, working_sets=(10, 40))
    report = bench.run(plan, tmp_path, "command")
    print_report(report)
    write_report(tmp_path / "out", report)
    assert "measured" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "fleet.json").read_text())
    assert [scenario["name"] for scenario in found["scenarios"]] == ["all resident", *POPULARITY]
    assert all(scenario["per_s"] > 0 and 0 < scenario["p50"] <= scenario["p99"] for scenario in found["scenarios"])
    assert all(sum(scenario["tiers"].values()) == pytest.approx(1) for scenario in found["scenarios"])
    assert found["scenarios"][0]["tiers"]["device"] > 0.9
    assert found["scenarios"][1]["tiers"]["disk"] > 0.2  # what does not fit comes from disk, not from its origin
    assert found["scenarios"][1]["tiers"]["origin"] == 0
    assert [(swap["num"], swap["library"]) for swap in found["swaps"]] == [(10, 2.0), (40, 2.0)]
    assert len(found["figures"]) == 6 and (tmp_path / "out" / "fleet.png").exists()


@pytest.mark.parametrize("name", POPULARITY)
def test_popularity_is_what_its_name_says(name: str) -> None:
    requests = POPULARITY[name](50, 4_000, default_rng(0))
    counts = np.sort(np.bincount(requests, minlength=50))[::-1]
    assert len(requests) == 4_000 and counts.sum() == 4_000
    if name == "uniform":
        assert counts[0] < 2 * counts[-1]
    else:
        assert counts[0] > 3 * counts[25]


def test_what_the_books_keep_is_found_more_often_than_by_least_recent_use() -> None:
    rows = {row.popularity: row for row in compare(1_000, 20_000)}
    assert all(row.hit_rate > row.lru_hit_rate for row in rows.values())
    assert all(rows[name].cost < rows[name].lru_cost for name in ("uniform", "zipf 0.9", "zipf 1.1"))
