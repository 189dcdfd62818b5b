"""`python -m loadtest VERB`: one verb per benchmark."""

from __future__ import annotations

import typer

from loadtest.verbs import (
    chaos,
    churn,
    cluster,
    engine,
    fairness,
    fleet,
    frontends,
    methods,
    overload,
    peers,
    ray,
    scale,
    scrape,
    serve,
    soak,
    targets,
    training,
)

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")


@app.callback()
def _verbs() -> None:
    """Benchmarks of adapterd. Every figure is a ratio within one run; absolute times belong to the machine."""


for verb in (
    *(
        engine,
        methods,
        serve,
        fleet,
        churn,
        overload,
        fairness,
        soak,
        chaos,
        ray,
        scrape,
        cluster,
        scale,
        frontends,
        peers,
        training,
        targets,
    ),
):
    app.command(verb.NAME, epilog=verb.EPILOG)(verb.run)

if __name__ == "__main__":
    app()
