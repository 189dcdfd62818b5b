"""What the simulation of a large cluster says, for the terminal and for the repository."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from loadtest import markdown
from loadtest.html import Report, Section, Table, write_json
from loadtest.scale import BATCH_S, BATCH_SAMPLES, CLIENT_CALLS, MAX_QUEUE_S, NUM_CLIENTS, OFFERED, ScaleReport

RING = """\
The ring is gRPC's, computed from the same hashes (a test holds it against gRPC itself). gRPC allows 4,096 points for a
whole ring where nobody asks for more; adapterd's client asks for 256 of each replica. "Busiest" is what the busiest
replica has of the mean; "moved" are the adapters that have another replica once there is one more."""
CACHE = """\
The server's own books, one for each replica, before Zipf(1) requests. Counted are requests, after the warm-up, for
adapters that somebody had asked for before: nobody could have had the others."""
LOAD = f"""\
The client's own routing, {NUM_CLIENTS} clients that each learn for themselves. A device takes {BATCH_S * 1000:g} ms
for a batch of {BATCH_SAMPLES}; callers ask for {OFFERED:.0%} of what all devices can do; a request whose wait would
exceed {MAX_QUEUE_S:g} s is refused. "Hottest" is what the most popular adapter asks for, in devices; "copies" are the
replicas that hold an adapter, on average over those that were asked for."""
CLIENT = f"""\
A real client in a process of its own, before one real server that listens at as many addresses as there are replicas;
{CLIENT_CALLS:,} calls for as many adapters, which nobody has, so that only the way there is measured."""


ORIGIN = """\
Measured here, on a local disk with everything cached, and multiplied: a look at the shared folder, what a replica knows
of a name that nobody asked for, and the log of orders of a name that was published twice. A look takes at most a
twentieth of a core, so the time between two looks grows with the folders; orders are followed every half second,
whatever their number."""


def print_report(report: ScaleReport) -> None:
    for section in _sections(report):
        print(f"\n{section.heading}\n")
        for content in section.contents:
            if isinstance(content, Table):
                print(markdown.table(content))


def write_report(folder: Path, report: ScaleReport) -> None:
    """scale.json and scale.md in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scale.json", asdict(report))
    plan = report.plan
    summary = (
        f"{plan.num_adapters:,} adapters, of which {plan.room:,} fit onto one replica; {plan.num_requests:,} requests"
        f" that fill caches and as many that are counted; {plan.num_batches} batches of each device, likewise."
    )
    page = Report("Large clusters", summary, report.machine, report.command, (), _sections(report))
    (folder / "scale.md").write_text(markdown.document(page, {}), encoding="utf-8")


def _sections(report: ScaleReport) -> list[Section]:
    rings = [(f"{r.num_replicas:,}", f"{r.points}", f"{r.busiest:.2f}", f"{r.moved:.2%}") for r in report.rings]
    caches = [(f"{r.num_replicas:,}", f"{r.by_adapter:.1%}", f"{r.at_random:.1%}") for r in report.caches]
    loads = [
        (
            f"{row.num_replicas:,}",
            f"{row.exponent:g}",
            f"{row.hottest:.1f}",
            "off" if row.spread == 1 else f"up to {row.spread:g}",
            f"{row.p50_s * 1000:.0f} ms",
            f"{row.p99_s * 1000:,.0f} ms",
            f"{row.refused:.1%}",
            f"{row.copies:.3f}",
        )
        for row in report.loads
    ]
    clients = [
        (
            f"{row.num_replicas:,}",
            f"{row.first_s * 1000:.0f} ms",
            f"{row.ring_mib:.1f} MiB",
            f"{row.held_mib:.1f} MiB",
            f"{row.call_s * 1e6:.0f} us",
        )
        for row in report.clients
    ]
    names, origin = report.plan.num_adapters, report.origin
    folder = [
        ("a look at the folder", f"{origin.scan_s * 1e6:.0f} us", f"{origin.scan_s * names:,.0f} s"),
        ("between two looks", "", f"{origin.between_looks_s(names):,.0f} s"),
        ("memory for a name", f"{origin.record_bytes:,.0f} B", f"{origin.record_bytes * names / 2**20:,.0f} MiB"),
        ("the log of orders", f"{origin.order_bytes:,.0f} B", f"{origin.order_bytes * names / 2**20:,.0f} MiB"),
        ("memory for an order", f"{origin.order_memory:,.0f} B", f"{origin.order_memory * names / 2**20:,.0f} MiB"),
        ("reading the log at start", f"{origin.order_s * 1e6:.0f} us", f"{origin.order_s * names:,.0f} s"),
        ("writing an order", f"{origin.append_s * 1e3:.1f} ms", ""),
    ]
    load_header = ("replicas", "Zipf", "hottest", "spill-over", "p50 of waits", "p99", "refused", "copies")
    client_header = ("replicas", "until the first answer", "holds then", "connected to all", "a call then")
    return [
        Section("The ring", RING, [Table(("replicas", "points each", "busiest", "moved"), rings)]),
        Section("Caches", CACHE, [Table(("replicas", "hits by adapter", "hits at random"), caches)]),
        Section("Load", LOAD, [Table(load_header, loads)]),
        Section("A client", CLIENT, [Table(client_header, clients)]),
        Section("The shared folder", ORIGIN, [Table(("", "each", f"{names:,}"), folder)]),
    ]
