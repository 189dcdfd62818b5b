"""adapterd predict: ask a running server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.calls import calling
from server.cli.completion import adapter_names
from server.cli.options import DEFAULT_SERVER, Json, Server, Token
from server.cli.output import reported, say_message
from server.errors import InvalidInput

if TYPE_CHECKING:
    from adapterd.v1.inference_pb2 import PredictResponse

NAME = "predict"
EXAMPLE = 'adapterd predict sst2-sentiment "a fine film"'


def run(
    adapter: Annotated[
        str,
        typer.Argument(
            help='A registered adapter, "base", or a composition: "Stack(de, ner)".', autocompletion=adapter_names
        ),
    ],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; without any, each line of stdin.")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="Second segment, one per text: a context, a hypothesis.")
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="Head that answers instead of the adapter's own; may be repeated.")
    ] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="A choice of a multiple-choice question; repeat it for each.")
    ] = None,
    skip_layer: Annotated[list[int] | None, typer.Option(help="Layer without adapters; may be repeated.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Most labels, answers, choices or tokens.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score of a label.")] = None,
    as_json: Json = False,
    server: Server = DEFAULT_SERVER,
    timeout: Annotated[float, typer.Option(help="Seconds this may take.")] = 30.0,
    token: Token = None,
) -> None:
    """Send texts through one adapter or composition and print the answers."""
    texts = text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    with reported(as_json), calling(server, token) as client:
        try:
            reply = client.predict(
                adapter,
                texts,
                text_pair=pair,
                heads=head or (),
                choices=choice or (),
                skip_layers=skip_layer or (),
                top_k=top_k,
                threshold=threshold,
                timeout=timeout,
            )
        except ValueError as error:  # of the request, which was not sent
            raise InvalidInput(str(error)) from error
    if as_json:
        say_message(reply)
    else:
        _print_table(texts, reply)


def _print_table(texts: list[str], reply: PredictResponse) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from server.cli.answers import rows_of

    has_branches = any(result.parallel for result in reply.results)
    table = Table("text", *(["adapter"] if has_branches else []), "answer", box=None, pad_edge=False)
    for text, result in zip(texts, reply.results, strict=True):
        for branch, answer in rows_of(result):
            cells = (text, branch, answer) if has_branches else (text, answer)
            table.add_row(*map(Text, cells))  # Text, because brackets are markup to rich
    console = Console()
    console.print(table)
    console.print(f"{reply.adapter} {reply.digest[:12]}", style="dim", highlight=False)
