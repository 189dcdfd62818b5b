"""Where Prometheus finds the metrics of replicas, whose ports nobody knows before: a file for its `file_sd_configs`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection
from pathlib import Path


def write(path: Path, addresses: Collection[str]) -> None:
    """All replicas write the same file: whole, and whoever writes last has the newest list. Raises OSError."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        new.write_text(json.dumps([{"targets": sorted(addresses)}]) + "\n", encoding="utf-8")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
