"""What is asked for: how many replicas, what each gets, and the settings of their servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from server.cli.settings import load_config
from server.config import ServerConfig
from server.errors import InvalidInput

OURS = ("api.advertise", "api.replicas")  # each replica has its own
PATHS = ("cache.disk_path", "api.tenants", "api.tls_certificate", "api.tls_key", "api.tls_client_ca")
OUTPUT_PATHS = ("api.audit_log", "api.publish_folder")
RELOAD_S = 0.5  # between looks at the list of replicas, where nothing else is asked for


@dataclass(frozen=True, slots=True)
class Plan:
    """
    settings   "section.key": value, as --set takes them; of all others the default
    replicas   "2", or "1..8": as many as the load asks for
    num_cpus   that Ray keeps for each; fractions too
    num_gpus   likewise
    scrape_targets   a file that replicas keep true, see `targets`; empty for none

    Raises InvalidInput.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    replicas: str = "1"
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    scrape_targets: str = ""

    def __post_init__(self) -> None:
        least, most = self.bounds
        if not 1 <= least <= most:
            raise InvalidInput(f"replicas {self.replicas!r} must be 1 or more, and its end no less than its beginning")
        for name in ("num_cpus", "num_gpus"):
            if getattr(self, name) < 0:
                raise InvalidInput(f"{name} {getattr(self, name):g} must be 0 or more")
        for key in OURS:
            if key in self.settings:
                raise InvalidInput(f"{key} is told to each replica by the cluster; leave it out")
        self.config()

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        found = re.fullmatch(r"(\d{1,6})(?:\.\.(\d{1,6}))?", self.replicas.strip())
        if found is None:
            raise InvalidInput(f"replicas {self.replicas[:32]!r} is neither a number nor of the form 1..8")
        return int(found[1]), int(found[2] or found[1])

    def config(self) -> ServerConfig:
        """Of each server. Raises InvalidInput."""
        return load_config(None, self.settings)

    def child_settings(self) -> dict[str, Any]:
        """With what is right for a replica where nothing is asked for."""
        filled: dict[str, Any] = {"api.reload_s": RELOAD_S}
        if not self.num_gpus and self.num_cpus:
            filled["model.num_threads"] = max(1, int(self.num_cpus))
        return {**filled, **self.settings}


def settings_of(config: ServerConfig) -> dict[str, Any]:
    """What is not as by default, with paths that hold wherever a process starts."""
    found = dict(_differing(config))
    for key in (*PATHS, *OUTPUT_PATHS):
        if key in found:
            found[key] = str(Path(found[key]).absolute())
    if "cache.adapters" in found:
        found["cache.adapters"] = [str(path.absolute()) for path in found["cache.adapters"]]
    base = Path(config.model.base)
    if base.is_dir():
        found["model.base"] = str(base.absolute())
    return found


def _differing(config: ServerConfig) -> Iterator[tuple[str, Any]]:
    for section in fields(config):
        values = getattr(config, section.name)
        for one in fields(values):
            value = getattr(values, one.name)
            if value != one.default:
                yield f"{section.name}.{one.name}", value


def assignments(settings: Mapping[str, Any]) -> list[str]:
    """--set section.key=value for each, as TOML reads it."""
    found = []
    for key, value in settings.items():
        found += ["--set", f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"]
    return found
