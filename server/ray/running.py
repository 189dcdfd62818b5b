"""An application on a Ray cluster, or on a Ray of its own on this machine: brought up, and taken down."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

from server.config import is_loopback
from server.errors import InvalidInput, Unavailable
from server.ray import leftovers
from server.ray.application import of_plan
from server.ray.child import BEFORE_IT_SERVED
from server.ray.members import NAMESPACE, Membership
from server.ray.plan import RELOAD_S, Plan

NAME = "adapterd"  # of the application
LISTED_S = 30.0  # until those that serve have found each other
LOOK_S = 0.1


@contextmanager
def connected(address: str, is_local: bool) -> Iterator[None]:
    """
    address    of a running cluster, as `ray.init` takes it
    is_local   none is asked for: one on this machine, which ends with this process

    Raises Unavailable if nobody answers at the address.
    """
    try:
        if is_local:
            ray.init("local", namespace=NAMESPACE, include_dashboard=False)
        else:
            ray.init(address, namespace=NAMESPACE)
    except (ConnectionError, ValueError, RayError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address!r}: {error}; start one with ray start --head, and where it wants a"
            " token, set RAY_AUTH_MODE=token and have it in ~/.ray/auth_token"
        ) from error
    try:
        yield
    finally:
        ours = leftovers.descendants()
        ray.shutdown()
        if is_local:
            leftovers.end(ours)


def require_reachable(plan: Plan) -> None:
    """Raises InvalidInput for servers that other nodes' callers would not reach."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    host = plan.config().api.host
    if len(nodes) > 1 and is_loopback(host):
        raise InvalidInput(
            f"host {host!r} is reached from its own machine only, and this cluster has {len(nodes)} nodes; listen"
            " everywhere: --host 0.0.0.0, with --tenants or --allow-anonymous"
        )


def up(plan: Plan) -> Mapping[str, str]:
    """Have the application; gives host:port of its replicas, each with that of its metrics, when all asked for serve.

    Raises Unavailable if the servers do not come up.
    """
    members = Membership(NAME)
    members.start()
    serve.start(proxy_location=ProxyLocation.Disabled)
    try:
        serve.run(of_plan(plan), name=NAME, route_prefix=None)
    except RuntimeError as error:
        raise Unavailable(f"the application does not come up: {_why() or error}") from error
    return _listed(members, plan.bounds[0])


def is_up() -> bool:
    """Whether there is an application of ours, whoever brought it up and whether or not it serves."""
    return NAME in serve.status().applications


def down() -> None:
    """Take the application away; returns when its servers have answered what they accepted."""
    members = Membership(NAME)
    with suppress(RayServeException):  # Serve has not even started
        serve.delete(NAME)
    members.start()
    members.end()


def _why() -> str:
    """What the servers say that did not start; empty where it was something else."""
    deployments = serve.status().applications[NAME].deployments.values()
    return "; ".join(said for one in deployments if (said := one.message.partition(BEFORE_IT_SERVED)[2].strip()))


def _listed(members: Membership, num_replicas: int) -> Mapping[str, str]:
    until = time.monotonic() + LISTED_S
    while len(found := members.agreed()) < num_replicas:
        if time.monotonic() > until:
            raise Unavailable(f"{num_replicas} replicas have not found each other within {LISTED_S:g} s")
        time.sleep(LOOK_S)
    time.sleep(2 * RELOAD_S)  # their servers read what they have found
    return found
