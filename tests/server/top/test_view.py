"""The picture: whatever happens, it fits the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from server.metrics import Metrics
from server.top.scrape import parsed
from server.top.snapshot import LastUse, snapshot
from server.top.view import view


def facts(num_tenants: int = 0, num_adapters: int = 0) -> dict[str, Any]:
    """Of a server with large numbers everywhere."""
    text = Metrics().render().decode()
    found = snapshot(parsed(text, 0.0, ""), parsed(text, 1.0, ""), LastUse())
    rate = 123456.7
    return found | {
        "server": {"version": "0.1.0", "base": "a-base-with-a-rather-long-name" * 2, "device": "cuda:0"},
        "requests_per_s": {"OK": rate, "RESOURCE_EXHAUSTED": rate, "NOT_FOUND": 0.5, "INTERNAL": 0.1},
        "refused_per_s": {"queue": rate, "tenant": rate},
        "tokens_per_s": {"answered": 1e8, "computed": 1e8},
        "latency_s": {stage: {"per_s": rate, "p50": 0.0001, "p95": 0.5, "p99": 8.192} for stage in found["latency_s"]},
        "queue_samples": 100_000,
        "queue_tokens": 10_000_000,
        "batches_per_s": 999.9,
        "batch_means": {"samples": 512.0, "tokens": 65536.0, "adapters": 300.0},
        "batch_budget_tokens": 65536,
        "tiers": {
            tier: {"bytes": 200 << 30, "budget_bytes": 900 << 30, "adapters": 100_000, "hit_rate": 0.9876}
            | {"loads_per_s": rate, "evictions_per_s": rate}
            for tier in found["tiers"]
        },
        "tenants": [
            {"tenant": f"tenant-{i:04}", "answered_per_s": rate, "refused_per_s": rate, "failed_per_s": rate}
            | {"tokens_per_s": rate}
            for i in range(num_tenants)
        ],
        "adapters": [
            {"adapter": f"adapter-{i:04}", "requests_per_s": rate, "tokens_per_s": rate, "last_used_s_ago": 3600.0}
            for i in range(num_adapters)
        ],
    }


def drawn(shown: dict[str, Any] | None, width: int, height: int, trouble: str = "") -> list[str]:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(view(shown, "127.0.0.1:9090", width, height, trouble))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
@pytest.mark.parametrize(("num_tenants", "num_adapters"), [(0, 0), (1, 0), (3, 100), (500, 500)])
def test_the_picture_fits(width: int, height: int, num_tenants: int, num_adapters: int) -> None:
    lines = drawn(facts(num_tenants, num_adapters), width, height)
    assert len(lines) <= height and max(map(len, lines)) <= width


def test_numbers_are_whole_in_80_columns() -> None:
    shown = "\n".join(drawn(facts(2, 2), 80, 24))
    for number in (
        "123,457",
        "100,000,000",
        "8.19 s",
        "500.0 ms",
        "0.10 ms",
        "200.0 GiB of 900.0 GiB",
        "98.8%",
    ):
        assert number in shown, number
    assert "adapter-0001" in shown and "tenant-0001" in shown and "RESOURCE_EXHAUSTED" in shown


def test_what_does_not_fit_is_counted() -> None:
    lines = drawn(facts(500, 500), 80, 24)
    assert lines[-1].split() == ["495", "more", "495", "more"]
    assert len(drawn(facts(500, 500), 80, 60)) == 60


def test_a_server_that_is_away_is_told() -> None:
    [line] = drawn(facts(), 80, 24, "no answer from 127.0.0.1:9090 (Connection refused)")
    assert line == "no answer from 127.0.0.1:9090 (Connection refused), trying again"
    assert drawn(None, 80, 24) == ["waiting for 127.0.0.1:9090"]
