"""The other replicas: where they are listed, and whether callers can tell this one apart."""

from __future__ import annotations

import asyncio

from server.config import ApiConfig, is_loopback, split_address
from server.doctor.finding import Finding, ok, problem, warning
from server.errors import InvalidInput
from server.replicas import look

NAME = "replicas"


def replicas(api: ApiConfig) -> Finding:
    """Whether the list can be had, and this one is told its own address; where nothing is configured, all is well."""
    try:
        addresses = asyncio.run(look(api.replicas))
    except (OSError, ValueError, InvalidInput) as error:
        return problem(
            NAME,
            f"{api.replicas} cannot be looked up: {error}",
            "name a file with HOST:PORT a line, or a name that resolves to all replicas (api.replicas)",
        )
    if not api.advertise:
        return warning(
            NAME,
            f"{api.replicas} lists {len(addresses)}, and replies will not say which of them answered: clients cannot"
            " let a hot adapter spill over",
            "--set api.advertise=HOST, the address under which callers reach this one",
        )
    if is_loopback(split_address(api.advertise)[0]) and not is_loopback(api.host):
        return warning(
            NAME,
            f"advertise {api.advertise} is this machine's own loopback; callers elsewhere do not reach it",
            "--set api.advertise=HOST, the address under which callers reach this one",
        )
    return ok(NAME, f"{api.replicas} lists {len(addresses)}; this one is {api.advertise}")
