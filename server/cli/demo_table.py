"""What the demo prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapterd import Error
from adapterd.v1.adapters_pb2 import Base
from server.cli.answers import describe, labels_of

if TYPE_CHECKING:
    from server.cli.demo import Case, Row

console = Console(highlight=False)


def print_header(base: Base) -> None:
    shape = f"{base.num_layers} layers, hidden size {base.hidden_size}"
    console.print(f"[bold]adapterd[/] {base.name} ({shape}) on {base.device}, {base.dtype}")
    console.print("One stream, every request with its own adapter:\n")


def print_rows(rows: list[Row]) -> int:
    """Print the table; returns how many rows failed or gave another answer than expected."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("adapter", no_wrap=True)
    table.add_column("digest", no_wrap=True, style="dim")
    table.add_column("text")  # these two wrap on a narrow terminal
    table.add_column("answer")
    for name in ("ms", "batch", "adapters"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    console.print(table)
    num_wrong = sum(not is_right(row) for row in rows)
    if num_wrong:
        console.print(f"\n[bold red]{num_wrong} of {len(rows)} answers failed or are not what was expected[/]")
        for row in rows:
            if not is_right(row):
                _print_wrong(row)
    else:
        console.print(f"\n{len(rows)} answers, all as expected")
    return num_wrong


def print_how_to_call(case: Case, grpc_port: int, http_port: int) -> None:
    server = "" if grpc_port == 50051 else f" --server 127.0.0.1:{grpc_port}"
    console.print(f"\nServing gRPC on 127.0.0.1:{grpc_port}, metrics on http://127.0.0.1:{http_port}/metrics")
    console.print("From another shell:\n")
    console.print(f'  .venv/bin/adapterd predict {case.adapter} "{case.text}"{server}', soft_wrap=True)
    console.print(f"  .venv/bin/adapterd list{server}\n\nCtrl-C stops.")


def _cells(row: Row) -> tuple[str | Text, ...]:
    if isinstance(row.outcome, Error):
        return (
            row.case.adapter,
            "",
            Text(row.case.text),
            Text(row.outcome.reason or row.outcome.code.name, style="red"),
            "",
            "",
            "",
        )
    result = row.outcome.results[0]
    return (
        row.case.adapter,
        row.outcome.digest[:12],
        Text(row.case.text),  # Text, because brackets are markup to rich
        Text(describe(result, max_labels=1), style="" if is_right(row) else "red"),
        f"{row.milliseconds:.1f}",
        str(result.batch.id),
        str(result.batch.num_adapters),
    )


def is_right(row: Row) -> bool:
    return not isinstance(row.outcome, Error) and row.case.expect <= set(labels_of(row.outcome.results[0]))


def _print_wrong(row: Row) -> None:
    answer = str(row.outcome) if isinstance(row.outcome, Error) else describe(row.outcome.results[0])
    expected = ", ".join(sorted(row.case.expect)) or "any answer"
    console.print(Text(f"  {row.case.adapter}: {row.case.text!r} gave {answer}, expected {expected}"))
