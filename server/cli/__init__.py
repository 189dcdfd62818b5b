"""The command line: one file per verb. What is heavy (torch, grpc) is imported when a verb runs, so help is quick."""

from __future__ import annotations

import typer

from server.cli import demo, health, predict, pull, push, search, serve, token, traffic, train, verify
from server.cli import list as list_verb

app = typer.Typer(
    name="adapterd",
    help="Many adapters of one encoder, from one resident base model, any mix in one batch, over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Every verb is a function with an `epilog` example beside it. New verbs are registered here.
for verb in (serve, demo, predict, list_verb, traffic, token, train, push, pull, search, verify, health):
    app.command(verb.NAME, epilog=f"Example: {verb.EXAMPLE}")(verb.run)
