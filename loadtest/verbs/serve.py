"""A real server under load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import grpc
import typer

NAME = "serve"
EPILOG = """
A short form, about a minute and a half on two cores:

    python -m loadtest serve --quick --output /tmp/serve

What the committed figures come from:

    python -m loadtest serve --base bert-base --objective-ms 1000 --output /tmp/serve

Another objective, at one rate, with two processes that send unary calls:

    python -m loadtest serve --rate 200 --objective-ms 20 --rpc unary --generators 2

A server that runs already, with its own adapters; no comparison with the engine offline then:

    python -m loadtest serve --server 127.0.0.1:50051
"""


def run(
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

    from adapterd import Error
    from loadtest.latency import Objective
    from loadtest.scenarios import SCENARIOS, Plan
    from loadtest.serve import run as measure
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
        report, raw = measure(plan)
        print_report(report)
        if output:
            write_report(output, report, raw)
    except (AdapterdError, Error, RuntimeError, grpc.RpcError) as error:
        typer.echo(f"loadtest: {error}", err=True)
        raise typer.Exit(1) from error
