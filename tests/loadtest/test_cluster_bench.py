"""Short forms of the benchmarks of several replicas."""

from __future__ import annotations

from pathlib import Path

from loadtest import cluster, scale
from loadtest.cluster_report import write_report
from loadtest.scale import Ring, address, hashes_of
from loadtest.scale_report import write_report as write_scale


def test_replicas_are_measured_and_reported(tmp_path: Path) -> None:
    plan = cluster.Plan(seconds=1.0, num_adapters=200, counts=(1, 2), batch_s=(0.1, 0.02))
    report = cluster.run(plan, "python -m loadtest cluster")
    one, two, *_ = report.rows
    assert (one.num_replicas, two.num_replicas) == (1, 2)
    assert one.answered_per_s <= 1.1 * one.device_per_s and two.answered_per_s > 1.3 * one.answered_per_s
    assert sum(row.num_failed for row in report.rows) == 0
    by_adapter, at_random = report.hits
    assert by_adapter.hit_rate > at_random.hit_rate
    without, spilling = report.hot
    assert without.replicas == 1 < spilling.replicas
    assert spilling.hot_per_s > without.hot_per_s
    for row in report.published:
        assert row.num_replies > 0 == row.others == row.num_failed and row.last_old_s < 3
    write_report(tmp_path, report)
    page = (tmp_path / "cluster.md").read_text()
    assert "of linear" in page and (tmp_path / "cluster.png").stat().st_size > 1000
    assert {figure.name for figure in report.figures} and (tmp_path / "cluster.json").exists()


def test_a_small_cluster_is_simulated_and_reported(tmp_path: Path) -> None:
    plan = scale.Plan(
        (8,), num_adapters=2000, num_requests=4000, room=200, num_batches=20, num_folders=50, num_orders=200
    )
    report = scale.run(plan, "python -m loadtest scale")
    for row in report.caches:
        assert row.by_adapter > row.at_random
    for off, on in zip(report.loads[::2], report.loads[1::2], strict=True):
        assert off.copies == 1.0 <= on.copies and on.p99_s <= off.p99_s
    assert all(row.busiest >= 1 for row in report.rings)
    assert [row.num_replicas for row in report.clients] == [8]
    assert min(report.origin.scan_s, report.origin.order_s, report.origin.append_s, report.origin.order_bytes) > 0
    write_scale(tmp_path, report)
    assert "busiest" in (tmp_path / "scale.md").read_text()


def test_a_replica_more_takes_its_share_and_nothing_else_moves() -> None:
    hashes = hashes_of(5000)
    before = Ring([address(i) for i in range(10)], 256).homes(hashes)
    after = Ring([address(i) for i in range(11)], 256).homes(hashes)
    moved = before != after
    assert set(after[moved].tolist()) == {10} and 0.05 < moved.mean() < 0.15
    ring = Ring([address(i) for i in range(10)], 256)
    for hashed, home in zip(hashes[:50].tolist(), before[:50].tolist(), strict=True):
        assert ring.next(hashed, ()) == home != ring.next(hashed, (home,))
