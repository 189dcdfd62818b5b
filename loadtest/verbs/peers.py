"""Ours beside other ways to serve many adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "peers"
EPILOG = "Examples: python -m loadtest peers --quick; python -m loadtest peers --peer peft --budget 1024"


def run(
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
