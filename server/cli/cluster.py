"""adapterd cluster: several servers of the same base and adapters, on Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import options
from server.cli.output import quiet_stdout, reported, say
from server.errors import InvalidInput

if TYPE_CHECKING:
    from server.ray.plan import Plan

NAME = "cluster"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": all of Ray listens on 127.0.0.1, on every system
EXAMPLE = "adapterd cluster --on ray --replicas 2 --base minilm --adapters examples/adapters"


class Platform(StrEnum):
    RAY = "ray"


def run(
    context: typer.Context,
    on: Annotated[Platform, typer.Option(help="What starts, watches and replaces the servers.")] = Platform.RAY,
    replicas: Annotated[
        str, typer.Option(help='How many servers: "2", or "1..8" for as many as the load asks for.')
    ] = "1",
    cpus_per_replica: Annotated[float, typer.Option(help="CPUs that Ray keeps for each.")] = 1.0,
    gpus_per_replica: Annotated[float, typer.Option(help="GPUs that Ray keeps for each; 0.5 shares one.")] = 0.0,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help='Of a running Ray cluster, "auto" or HOST:PORT; without one, a Ray is started on this machine.',
        ),
    ] = None,
    scrape_targets: Annotated[
        Path | None,
        typer.Option(help="JSON for Prometheus' file_sd_configs, kept true by the servers; on every node."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running there; --down takes it down.")] = False,
    down: Annotated[
        bool, typer.Option("--down", help="Take down what runs there; other options play no part.")
    ] = False,
    config: options.Config = None,
    base: options.Base = None,
    adapters: options.AdapterFolders = None,
    registry: options.Registry = None,
    disk: options.Disk = None,
    composition: options.Composition = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_tokens: options.BatchTokens = None,
    host: options.Host = None,
    http_host: options.HttpHost = None,
    tenants: options.Tenants = None,
    allow_anonymous: options.AllowAnonymous = None,
    tls_certificate: options.TlsCertificate = None,
    tls_key: options.TlsKey = None,
    tls_client_ca: options.TlsClientCa = None,
    frontends: options.Frontends = None,
    assign: options.Assign = None,
    as_json: options.Json = False,
) -> None:
    """Run several servers until SIGTERM or Ctrl-C. Callers reach them directly, at free ports: each server knows all
    others, and a client of cluster:HOST:PORT finds them and keeps an adapter's requests with one of them.

    Ray starts the servers, places them on its nodes, replaces those that fail, and with --replicas 1..8 scales them by
    load. All options of adapterd serve but its ports are those of every server; files and folders have to be on every
    node. Each server has a folder of its own below --disk.
    """
    with reported(as_json):
        if (detach or down) and not address:
            name = "--detach" if detach else "--down"
            raise InvalidInput(f"{name} needs --address: a Ray that this command starts ends with it")
        plan = _plan(context)
        running = _running(is_local=not address)
        with running.connected(address or "", is_local=not address), _interruptible():  # Ray sets handlers of its own
            if down:
                return _take_down(running, as_json)
            running.require_reachable(plan)
            with ExitStack() as created:  # what was there before is not this command's to take down
                if not running.is_up():
                    created.callback(_take_down, running, as_json)
                elif not detach:
                    raise InvalidInput("an application runs there already: --detach updates it, --down takes it down")
                with quiet_stdout(as_json):
                    replicas_up = running.up(plan)
                _tell(replicas_up, as_json, detach)
                if detach:
                    created.pop_all()
                else:
                    with suppress(KeyboardInterrupt):
                        signal.pause()


def _plan(context: typer.Context) -> Plan:
    from server.ray.plan import Plan, settings_of

    given = context.params
    settings = settings_of(options.server_config(context, port=None, http_port=None))
    targets = given["scrape_targets"]
    return Plan(
        settings,
        given["replicas"],
        given["cpus_per_replica"],
        given["gpus_per_replica"],
        str(targets.absolute()) if targets else "",
    )


def _take_down(running: ModuleType, as_json: bool) -> None:
    with quiet_stdout(as_json):
        running.down()


def _running(is_local: bool) -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # they would go out to the network
    if is_local:
        os.environ[LOOPBACK_ONLY] = "0"  # Ray reads it when it is imported
    try:
        from server.ray import running
    except ModuleNotFoundError as error:
        raise InvalidInput(f"{error.name} is not installed; pip install 'adapterd[ray]'") from error
    return running


def _tell(replicas: Mapping[str, str], as_json: bool, detach: bool) -> None:
    server = f"cluster:{','.join(replicas)}"
    if as_json:
        return say({"addresses": [*replicas], "http_addresses": [*replicas.values()], "server": server})
    for address, http in replicas.items():
        typer.echo(f"serving at {address}, metrics at {http}")
    typer.echo(f'a client of all of them: Client("{server}")')
    typer.echo("adapterd cluster --address ADDRESS --down takes it down" if detach else "Ctrl-C takes it down")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does, whatever is under way; the second of both ends the process at once."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, lambda number, frame: os._exit(128 + number))
        raise KeyboardInterrupt

    handled = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, on_signal) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
