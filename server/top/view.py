"""A snapshot on a terminal: everything fits into 80 columns and 24 rows, and a larger one shows more rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from server.config import MIB

LEAST_ROWS = 3  # of tenants and adapters, however low the terminal is
FIXED_ROWS = 18  # of everything else, with the headers of those two
WIDE = 100  # columns, from which on tenants show what was refused and failed
WIDEST = 120  # beyond it numbers would stand too far from their names
NOTHING = "-"


def view(facts: Mapping[str, Any] | None, place: str, width: int, height: int, trouble: str = "") -> RenderableType:
    """
    facts    a snapshot; None before the first one
    trouble  why there is no newer one
    """
    if trouble or facts is None:
        return _away(place, trouble)
    num_rows = max(LEAST_ROWS, height - FIXED_ROWS)
    top = Table.grid(expand=True, padding=(0, 3))
    top.add_column(ratio=3)
    top.add_column(ratio=4)
    top.add_row(_flow(facts), _latencies(facts["latency_s"]))
    blank = Text("")
    parts = (_header(facts, place), blank, top, _batches(facts), _room(facts), blank, _tiers(facts["tiers"]), blank)
    return Constrain(Group(*parts, _callers(facts, num_rows, is_wide=width >= WIDE)), WIDEST)


def _away(place: str, trouble: str) -> RenderableType:
    text = f"{trouble}, trying again" if trouble else f"waiting for {place}"
    return Text(text, "yellow" if trouble else "dim")


def _header(facts: Mapping[str, Any], place: str) -> RenderableType:
    server = facts["server"]
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(no_wrap=True)
    name = Text.assemble((f"adapterd {server['version']}", "bold"), f"  {server['base']} on {server['device']}")
    line.add_row(name, Text(f"{place}, last {facts['interval_s']:.1f} s", "dim"))
    return line


def _flow(facts: Mapping[str, Any]) -> Table:
    """As many rows as there are stages beside it, and their header."""
    outcomes = sorted(facts["requests_per_s"].items(), key=lambda item: -item[1])[:2]
    tokens = facts["tokens_per_s"]
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(no_wrap=True, overflow="ellipsis")
    table.add_column(no_wrap=True, overflow="ellipsis", justify="right", ratio=1)
    table.add_row(Text("requests/s", "bold"), Text(_rate(sum(facts["requests_per_s"].values())), "bold"))
    for name, rate in outcomes:
        table.add_row(Text(f"  {name}", "" if name == "OK" else "red"), _rate(rate))
    for _ in range(2 - len(outcomes)):
        table.add_row()
    table.add_row(Text("tokens/s", "bold"), Text(_rate(tokens["answered"]), "bold"))
    table.add_row("  computed", _rate(tokens["computed"]))
    table.add_row("in flight", f"{facts['in_flight_requests']:,}")
    table.add_row("queue", f"{facts['queue_samples']:,}, {facts['queue_tokens']:,} tokens")
    return table


def _latencies(latency: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = _table("stage", "/s", "p50", "p95", "p99")
    for stage, row in latency.items():
        quantiles = (_seconds(row[name]) for name in ("p50", "p95", "p99"))
        table.add_row(stage, _rate(row["per_s"] or 0.0), *quantiles, style="bold" if stage == "total" else "")
    return table


def _batches(facts: Mapping[str, Any]) -> Text:
    if not facts["batches_per_s"]:
        return _line(("batches/s ", "bold"), "0")
    means = {what: NOTHING if mean is None else _rate(mean) for what, mean in facts["batch_means"].items()}
    budget = f" of {facts['batch_budget_tokens']:,}" if facts["batch_budget_tokens"] else ""
    return _line(
        ("batches/s ", "bold"),
        _rate(facts["batches_per_s"]),
        f", of {means['samples']} samples, {means['tokens']}{budget} tokens, {means['adapters']} adapters",
    )


def _room(facts: Mapping[str, Any]) -> Text:
    """What the device does, and whom there was no room for."""
    slots = facts["slots"]
    refused = ", ".join(f"{reason} {_rate(rate)}" for reason, rate in facts["refused_per_s"].items())
    return _line(
        ("device ", "bold"),
        f"{facts['device_busy']:.0%} busy, slots: {slots['leased']:,} leased, {slots['idle']:,} idle",
        (f"   refused/s: {refused}" if refused else "", "red"),
    )


def _tiers(tiers: Mapping[str, Mapping[str, Any]]) -> Table:
    columns = ("bytes", "adapters", "hits", "loads/s", "evictions/s")
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    table.add_column("tier", no_wrap=True)
    table.add_column("", ratio=1)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for tier, row in tiers.items():
        budget = row["budget_bytes"]
        table.add_row(
            tier,
            ProgressBar(total=budget, completed=row["bytes"]) if budget else "",
            f"{_size(row['bytes'])} of {_size(budget)}" if budget else NOTHING,
            f"{row['adapters']:,}",
            NOTHING if row["hit_rate"] is None else f"{row['hit_rate']:.1%}",
            _rate(row["loads_per_s"]),
            _rate(row["evictions_per_s"]),
        )
    return table


def _callers(facts: Mapping[str, Any], num_rows: int, *, is_wide: bool) -> Table:
    """Tenants, and beside them adapters where the server tells of them."""
    tenants, adapters = _tenants(facts["tenants"], num_rows, is_wide=is_wide), facts["adapters"]
    side = Table.grid(expand=True, padding=(0, 3))
    side.add_column(ratio=5 if is_wide else 4)
    if adapters:
        side.add_column(ratio=5)
    side.add_row(tenants, *([_adapters(adapters, num_rows)] if adapters else ()))
    return side


def _tenants(rows: Sequence[Mapping[str, Any]], num_rows: int, *, is_wide: bool) -> Table:
    shown = ("answered", "refused", "failed") if is_wide else ("answered",)
    table = _table("tenant", *(f"{name}/s" for name in shown), "tokens/s")
    for row in rows[: _fitting(rows, num_rows)]:
        table.add_row(row["tenant"], *(_rate(row[f"{name}_per_s"]) for name in shown), _rate(row["tokens_per_s"]))
    return _with_rest(table, rows, num_rows)


def _adapters(rows: Sequence[Mapping[str, Any]], num_rows: int) -> Table:
    table = _table("adapter", "req/s", "tokens/s", "used")
    for row in rows[: _fitting(rows, num_rows)]:
        used = _ago(row["last_used_s_ago"])
        table.add_row(row["adapter"], _rate(row["requests_per_s"]), _rate(row["tokens_per_s"]), used)
    return _with_rest(table, rows, num_rows)


def _fitting(rows: Sequence[object], num_rows: int) -> int:
    """How many are shown, where a row says how many are not."""
    return num_rows if len(rows) <= num_rows else num_rows - 1


def _with_rest(table: Table, rows: Sequence[object], num_rows: int) -> Table:
    if len(rows) > num_rows:
        table.add_row(Text(f"{len(rows) - num_rows + 1} more", "dim"))
    return table


def _table(*columns: str) -> Table:
    """Names on the left, which give way where there is no room; numbers on the right."""
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    for number, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", ratio=None if number else 1)
    return table


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, overflow="ellipsis", no_wrap=True)


def _rate(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 0.01 else f"{value * 1e3:.2f} ms"


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    return "now" if seconds < 1 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _size(size_bytes: int) -> str:
    size = size_bytes / MIB
    return f"{size / 1024:,.1f} GiB" if size >= 1024 else f"{size:,.0f} MiB" if size >= 10 else f"{size:.1f} MiB"
