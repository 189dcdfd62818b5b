"""What a shell offers behind Tab. Where nothing is offered, it offers files.

Whatever goes wrong here is nobody's to hear of: then there is nothing to offer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING

import typer

from server.cli.calls import DEFAULT_SERVER, connected
from server.cli.settings import SECTIONS

if TYPE_CHECKING:
    from adapterd import Client

TIMEOUT_S = 0.5  # until a shell feels stuck
MAX_OFFERED = 100
TASKS = ("text-classification", "multi-label-classification", "regression", "token-classification")


def adapter_names(context: typer.Context, incomplete: str) -> list[str]:
    """Of the server that the command names, if one answers at once, and the base's."""
    names = _beginning(incomplete, ("base",))
    try:
        with _client(context) as client:
            names += [found.name for found in islice(client.list(incomplete, timeout=TIMEOUT_S), MAX_OFFERED)]
    except Exception:
        pass
    return names


def versions(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Digests of the adapter that the command names."""
    try:
        with _client(context) as client:
            found = client.get(str(context.params["adapter"]), timeout=TIMEOUT_S)
        return [(version.digest[:12], f"{version.percent} %") for version in found.versions]
    except Exception:
        return []


def _client(context: typer.Context) -> Client:
    server, token = context.params.get("server"), context.params.get("token")
    return connected(server or DEFAULT_SERVER, token, max_retries=0)


def setting_keys(incomplete: str) -> list[str]:
    """section.key= of every setting; behind the sign it is the user's turn."""
    keys = (f"{section}.{field.name}=" for section, kind in SECTIONS.items() for field in fields(kind))
    return _beginning(incomplete, keys)


def bases(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("minilm",))


def devices(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("auto", "cpu", "cuda"))


def dtypes(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("auto", "float32", "bfloat16", "float16"))


def backends(incomplete: str) -> list[str]:
    return _beginning(incomplete, ("auto", "eager", "triton", "reference"))


def tasks(incomplete: str) -> list[str]:
    return _beginning(incomplete, TASKS)


def methods(incomplete: str) -> list[str]:
    from adapters_cache.formats.named import NAMED, UNIONS

    return _beginning(incomplete, (*NAMED, *UNIONS))


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
