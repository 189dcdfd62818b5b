"""`python -m loadtest VERB`: one verb per benchmark."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


@app.callback()
def _verbs() -> None:
    """Benchmarks of adapterd. Every figure is a ratio within one run; absolute times belong to the machine."""


ENGINE_EPILOG = """
A short form, a minute or two on two cores:

    python -m loadtest engine --quick --output /tmp/engine

What the committed figures come from; every axis, 1,000 resident adapters:

    python -m loadtest engine --base bert-base --output /tmp/engine

On a GPU, which fills the GPU column of the targets:

    python -m loadtest engine --base bert-base --device cuda --dtype bfloat16 --budget 32768 --output /tmp/engine

One axis alone, on values of your own:

    python -m loadtest engine --axis count --count 32 --count 4000
"""
AXES = {
    "mix": "mixes",
    "count": "counts",
    "method": "methods",
    "width": "widths",
    "budget": "budgets",
    "lengths": "length_names",
}


@app.command(epilog=ENGINE_EPILOG)
def engine(
    base: Annotated[str, typer.Option(help="minilm, bert-base (random weights), or a directory")] = "minilm",
    axis: Annotated[
        list[str] | None, typer.Option(help=f"what to vary: {', '.join(AXES)}; may be repeated; without it, all")
    ] = None,
    count: Annotated[list[int] | None, typer.Option(help="resident adapters, zipf; may be repeated")] = None,
    method: Annotated[list[str] | None, typer.Option(help="method or configuration string; may be repeated")] = None,
    width: Annotated[list[int] | None, typer.Option(help="bottleneck width; may be repeated")] = None,
    budget: Annotated[int, typer.Option(help="tokens per batch at the centre of all axes; 0: 4096, quick 2048")] = 0,
    adapters: Annotated[int, typer.Option(help="adapters at the centre of all axes")] = 32,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 7,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    quick: Annotated[bool, typer.Option(help="a short form: fewer values, three rounds")] = False,
    output: Annotated[
        Path | None, typer.Option(help="folder for engine.html, engine.json, engine.md and its pictures")
    ] = None,
) -> None:
    """Offline tokens/s of any mix of adapters against the base alone, and against the device's own limits.

    Varied one at a time: the mix, how many adapters are resident, their method and width, tokens per batch, lengths.
    """
    from loadtest.engine import Plan, run
    from loadtest.engine_report import print_report, write_report
    from loadtest.grid import QUICK, Grid

    if unknown := set(axis or ()) - AXES.keys():
        raise typer.BadParameter(f"{', '.join(unknown)} is not among {', '.join(AXES)}", param_hint="--axis")
    given = {"counts": count, "methods": method, "widths": width}
    values: dict[str, Any] = {name: tuple(own) for name, own in given.items() if own}
    values |= {field: () for name, field in AXES.items() if axis and name not in axis}
    centre = budget or (2048 if quick else 4096)
    grid = replace(QUICK if quick else Grid(), budget=centre, num_adapters=adapters, **values).with_budget(centre)
    report = run(
        Plan(
            base=base,
            grid=grid,
            rounds=3 if quick else rounds,
            tokens=centre,
            device=device,
            dtype=dtype,
            command=shlex.join(["python", "-m", "loadtest", *sys.argv[1:]]),
        )
    )
    print_report(report)
    if output:
        write_report(output, report)


@app.command(epilog="Example: python -m loadtest methods --budget 4096")
def methods(
    base: Annotated[str, typer.Option(help="minilm, a directory, or a hub id")] = "minilm",
    budget: Annotated[int, typer.Option(help="tokens per batch")] = 4096,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    output: Annotated[Path | None, typer.Option(help="folder for methods.json and methods.md")] = None,
) -> None:
    """What a batch of every method costs beside one of plain bottlenecks, and what Parallel saves."""
    from loadtest.methods import run
    from loadtest.report import print_figures, write_figures

    report = run(base, budget, rounds, device, dtype)
    print_figures(report)
    if output:
        write_figures(output, report)


SERVE_EPILOG = """
A short form, about a minute and a half on two cores:

    python -m loadtest serve --quick --output /tmp/serve

What the committed figures come from:

    python -m loadtest serve --base bert-base --objective-ms 250 --output /tmp/serve

Another objective, at one rate, with two processes that send unary calls:

    python -m loadtest serve --rate 200 --objective-ms 20 --rpc unary --generators 2

A server that runs already, with its own adapters; no comparison with the engine offline then:

    python -m loadtest serve --server 127.0.0.1:50051
"""


@app.command(epilog=SERVE_EPILOG)
def serve(
    base: Annotated[str, typer.Option(help="minilm, bert-base (random weights), or a directory")] = "minilm",
    adapters: Annotated[int, typer.Option(min=1, help="adapters that are asked for")] = 32,
    objective_ms: Annotated[float, typer.Option(min=1, help="what 99 of 100 requests must stay within")] = 50.0,
    rate: Annotated[float, typer.Option(min=0, help="requests/s of the scenarios; 0 finds the highest that holds")] = 0,
    scenario: Annotated[list[str] | None, typer.Option(help="one of them only; may be repeated")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="measured altogether, besides starting up")] = 300.0,
    step: Annotated[float, typer.Option(min=0.5, help="seconds of one run")] = 8.0,
    rounds: Annotated[int, typer.Option(min=1, help="of saturation, served and offline in turn")] = 5,
    server: Annotated[str, typer.Option(help="host:port of one that runs; without it one is started")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the server that is started", metavar="KEY=VALUE")
    ] = None,
    rpc: Annotated[str, typer.Option(help="stream (PredictStream) or unary (Predict)")] = "stream",
    generators: Annotated[int, typer.Option(min=1, help="processes that send")] = 1,
    quick: Annotated[bool, typer.Option(help="a short form: 3 s per run, 3 rounds, 70 s altogether")] = False,
    output: Annotated[
        Path | None, typer.Option(help="folder for serve.html, serve.json, serve.md and its pictures")
    ] = None,
) -> None:
    """Load a real server over gRPC: the highest rate that holds an objective, latency, batches, saturation.

    Arrivals are an open loop: requests go out at times drawn beforehand, whatever comes back, and latency counts from
    when a request was due. Saturation is held against the same engine offline, in the same run.
    """
    import grpc

    from adapterd import Error
    from loadtest.latency import Objective
    from loadtest.scenarios import SCENARIOS, Plan
    from loadtest.serve import run
    from loadtest.serve_report import print_report, write_report
    from server.errors import AdapterdError

    if rpc not in ("stream", "unary"):
        raise typer.BadParameter(f"{rpc!r} is neither stream nor unary", param_hint="--rpc")
    if unknown := set(scenario or ()) - SCENARIOS.keys():
        raise typer.BadParameter(f"{unknown} is not among {', '.join(SCENARIOS)}", param_hint="--scenario")
    plan = Plan(
        base=base,
        device=device,
        dtype=dtype,
        server=server,
        settings=tuple(assign or ()),
        num_adapters=adapters,
        objective=Objective(objective_ms / 1000),
        rate=rate,
        scenarios=tuple(scenario or SCENARIOS),
        seconds=70.0 if quick else seconds,
        step_s=3.0 if quick else step,
        rounds=3 if quick else rounds,
        rpc="unary" if rpc == "unary" else "stream",
        num_generators=generators,
    )
    try:
        report, raw = run(plan)
        print_report(report)
        if output:
            write_report(output, report, raw)
    except (AdapterdError, Error, RuntimeError, grpc.RpcError) as error:
        typer.echo(f"loadtest: {error}", err=True)
        raise typer.Exit(1) from error


@app.command(epilog="Example: python -m loadtest targets docs/benchmarks/bert-base")
def targets(
    reports: Annotated[list[Path], typer.Argument(help="reports in JSON, or folders with reports")],
) -> None:
    """The figures of reports that were written with --output, beside their targets, in one table."""
    from loadtest.targets import collected, print_targets

    try:
        print_targets(collected(reports))
    except (OSError, ValueError) as error:
        typer.echo(f"loadtest: {error}", err=True)
        raise typer.Exit(1) from error


@app.command(epilog="Example: python -m loadtest frontends --frontends 1 --frontends 2")
def frontends(
    frontends: Annotated[list[int] | None, typer.Option(help="numbers of front processes; may be repeated")] = None,
    callers: Annotated[int, typer.Option(help="processes that call")] = 2,
    connections: Annotated[int, typer.Option(help="of each of them")] = 8,
    in_flight: Annotated[int, typer.Option(help="calls on each connection")] = 8,
    seconds: Annotated[float, typer.Option(help="of one round")] = 3.0,
    rounds: Annotated[int, typer.Option(help="measured repetitions; the median counts")] = 5,
    output: Annotated[Path | None, typer.Option(help="folder for frontends.json and frontends.md")] = None,
) -> None:
    """Calls/s and CPU time per call of one process, and of front processes before an engine process."""
    from loadtest.frontends import Plan, run
    from loadtest.frontends_report import print_frontends, write_frontends

    report = run(Plan(tuple(frontends or (1, 2)), callers, connections, in_flight, seconds, rounds))
    print_frontends(report)
    if output:
        write_frontends(output, report)


@app.command(epilog="Examples: python -m loadtest peers --quick; python -m loadtest peers --peer peft --budget 1024")
def peers(
    base: Annotated[
        str, typer.Option(help="bert-base (that shape, random weights), minilm, or a BERT's folder")
    ] = "bert-base",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="transformers, adapterhub-batchsplit, adapterhub-switch, peft, full; may be repeated"),
    ] = None,
    adapters: Annotated[int, typer.Option(min=1, help="adapters that texts are dealt to")] = 32,
    tokens: Annotated[int | None, typer.Option(min=1, help="of all texts of a round together; by default 4096")] = None,
    budget: Annotated[
        list[int] | None, typer.Option(min=1, help="tokens per batch that each may choose from; may be repeated")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="measured repetitions; the median counts")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="of every contender; 0 takes all cores")] = 0,
    memory_gib: Annotated[float, typer.Option(help="what copies of the base may take for --peer full")] = 4.0,
    timeout_s: Annotated[float, typer.Option(help="for any one step of a peer")] = 600.0,
    environments: Annotated[
        Path | None, typer.Option(help="folder of the peers' environments; by default ~/.cache/adapterd/peers")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16")] = "float32",
    quick: Annotated[bool, typer.Option(help="a short form: minilm, fewer texts and budgets, three rounds")] = False,
    output: Annotated[
        Path | None, typer.Option(help="folder for peers.html, peers.json, peers.md and its picture")
    ] = None,
) -> None:
    """Ours beside transformers, AdapterHub's library, PEFT and one full model per task: same weights, same texts.

    Foreign libraries run in environments of their own, made on first use (about 1.2 GB each) and kept. Answers are
    compared before anything is timed; a peer that fails is reported with its error.
    """
    from loadtest.peers.contenders import PEERS
    from loadtest.peers.driver import PeersBench
    from loadtest.peers.environments import DEFAULT_FOLDER
    from loadtest.peers.plan import GIB, Plan, all_threads
    from loadtest.peers.report import print_table, write_report

    known = [each.key for each in PEERS]
    if unknown := sorted(set(peer or ()) - set(known)):
        raise typer.BadParameter(f"{', '.join(unknown)}; known: {', '.join(known)}", param_hint="--peer")
    plan = Plan(
        base="minilm" if quick else base,
        peers=tuple(peer or known),
        num_adapters=adapters,
        num_tokens=tokens or (2048 if quick else 4096),
        budgets=tuple(budget or ((128, 512, 2048) if quick else (64, 128, 256, 512, 1024, 2048, 4096))),
        rounds=3 if quick else rounds,
        threads=threads or all_threads(),
        device=device,
        dtype=dtype,
        memory_bytes=int(memory_gib * GIB),
        timeout_s=timeout_s,
        environments=environments or DEFAULT_FOLDER,
    )
    report = PeersBench(plan).run()
    print_table(report)
    if output:
        write_report(output, report)


if __name__ == "__main__":
    app()
