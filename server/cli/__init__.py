"""The command line: one file per verb. What is heavy (torch, grpc) is imported when a verb runs, so help is quick."""

from __future__ import annotations

import typer

from server.cli import (
    cluster,
    demo,
    doctor,
    health,
    predict,
    pull,
    push,
    search,
    serve,
    token,
    top,
    traffic,
    train,
    verify,
)
from server.cli import list as list_verb
from server.cli.group import Commands

app = typer.Typer(
    name="adapterd",
    cls=Commands,
    help="Many adapters of one encoder, from one resident base model, any mix in one batch, over gRPC.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

# Every verb is a function with an `epilog` example beside it. New verbs are registered here.
VERBS = (
    *(serve, cluster, demo, doctor, top, health),
    *(predict, list_verb, traffic, token),
    *(train, push, pull, search, verify),
)
for verb in VERBS:
    app.command(verb.NAME, epilog=f"Example: {verb.EXAMPLE}")(verb.run)
