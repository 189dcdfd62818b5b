"""All pages of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from reference_cli import cli_page
from reference_grpc import grpc_page
from reference_http import http_page
from reference_settings import configuration_page
from reference_text import ROOT

PAGES: Mapping[str, Callable[[], str]] = {
    "grpc.md": grpc_page,
    "http.md": http_page,
    "configuration.md": configuration_page,
    "cli.md": cli_page,
}


def generated() -> Iterator[tuple[Path, str]]:
    """Each page, and what it should hold."""
    for name, make in PAGES.items():
        yield ROOT / "docs" / "reference" / name, make().rstrip() + "\n"
