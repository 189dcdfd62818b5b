"""Which registry an address means, and the credentials that belong to it.

Credentials are in a TOML file (ADAPTERD_ORIGINS, by default ~/.config/adapterd/origins.toml), by the beginning of an
address; the longest that fits counts. A value "env:NAME" is read from the environment.

    ["s3://team-bucket"]
    key = "env:TEAM_KEY"
    secret = "env:TEAM_SECRET"

    ["hub:my-org"]
    token = "env:MY_ORG_TOKEN"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_cache.sharing.folder import FolderRegistry
from adapters_cache.sharing.hub import HubRegistry
from server.errors import InvalidInput

HUB = "hub:"
MAIN = "main"
FILE_VARIABLE = "ADAPTERD_ORIGINS"
DEFAULT_FILE = Path("~/.config/adapterd/origins.toml")
FIRST_HUB = "@ukp/"  # how AdapterHub named what now lies under its organization on the hub


@dataclass(frozen=True, slots=True)
class Address:
    """registry   a folder, an fsspec URL, or "hub:"."""

    registry: str
    name: str
    revision: str = MAIN

    @property
    def is_hub(self) -> bool:
        return self.registry == HUB


def address_of(text: str, registry: str = "") -> Address:
    """ "name@rev" in `registry`; "hub:org/name@rev", "org/name" and AdapterHub's "@ukp/name" on the hub.

    Raises InvalidInput for a bare name where there is no registry.
    """
    if text.startswith(FIRST_HUB):
        text = "AdapterHub/" + text.removeprefix(FIRST_HUB)
    path, separator, revision = text.rpartition("@")
    path, revision = (path, revision) if separator else (text, MAIN)
    if path.startswith(HUB):
        return Address(HUB, path.removeprefix(HUB), revision)
    if not registry and path.count("/") == 1:
        return Address(HUB, path, revision)
    if not registry:
        raise InvalidInput(f"{text!r} names no registry: give --from, or hub:organization/name")
    if registry.startswith(HUB):
        author = registry.removeprefix(HUB)
        return Address(HUB, f"{author}/{path}" if author and "/" not in path else path, revision)
    return Address(registry, path, revision)


def open_registry(address: Address) -> FolderRegistry | HubRegistry:
    """With the credentials of its origin. Raises InvalidInput."""
    if address.is_hub:
        options = credentials(f"{HUB}{address.name}")
        unknown = options.keys() - {"endpoint", "token"}
        if unknown:
            raise InvalidInput(f"the hub takes endpoint and token, not {', '.join(sorted(unknown))}")
        return HubRegistry(options.get("endpoint"), options.get("token"))
    return FolderRegistry(address.registry, credentials(address.registry))


def credentials(address: str) -> dict[str, Any]:
    """Of the longest beginning of `address` that the file has. Raises InvalidInput, which shows no value."""
    named = os.environ.get(FILE_VARIABLE)
    path = Path(named) if named else DEFAULT_FILE.expanduser()
    if not path.exists():
        return {}
    try:
        origins = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path} is not TOML: {type(error).__name__}") from None
    fitting = [key for key in origins if f"{address}/".startswith(f"{key.rstrip('/')}/")]
    return {key: _value(path, key, value) for key, value in origins[max(fitting, key=len)].items()} if fitting else {}


def _value(path: Path, key: str, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("env:"):
        return value
    found = os.environ.get(value.removeprefix("env:"))
    if found is None:
        raise InvalidInput(f"{path}: {key} is read from {value.removeprefix('env:')}, which is not set")
    return found
