"""Every number of the configuration is looked at before anything starts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from server.config import ApiConfig, CacheConfig, ModelConfig, SchedulerConfig
from server.errors import InvalidInput

SECTIONS: tuple[type[Any], ...] = (ModelConfig, CacheConfig, SchedulerConfig, ApiConfig)
NUMBERS = [(kind, field.name) for kind in SECTIONS for field in fields(kind) if field.type in ("int", "float")]
MAY_BE_ZERO = {
    *("num_threads", "max_batch_tokens", "verify_tolerance", "port", "http_port"),
    *("drain_timeout_s", "lame_duck_s", "frontends", "kept_versions", "watch_s", "idle_ttl_s"),
    *("canary_share", "canary_tolerance", "max_queue_s", "reload_s", "trace_share"),
}


@pytest.mark.parametrize(("kind", "name"), NUMBERS)
def test_no_number_may_be_negative_and_few_may_be_zero(kind: type[Any], name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} -1"):
        kind(**{name: -1})
    if name in MAY_BE_ZERO:
        kind(**{name: 0})
    else:
        with pytest.raises(InvalidInput, match=f"{name} 0 must be"):
            kind(**{name: 0})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("kind", "name"), [item for item in NUMBERS if item[1].endswith("_s")])
def test_times_are_finite(kind: type[Any], name: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{name} {value}"):
        kind(**{name: value})


@pytest.mark.parametrize(("name", "most"), [("port", 65535), ("http_port", 65535), ("max_message_bytes", 2**31 - 1)])
def test_what_the_network_bounds_is_bounded(name: str, most: int) -> None:
    ApiConfig(**{name: most})  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=f"{name} {most + 1} must be at most {most}"):
        ApiConfig(**{name: most + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "name"), [(ModelConfig, "base"), (ModelConfig, "device"), (ModelConfig, "backend"), (ApiConfig, "host")]
)
def test_no_name_may_be_empty(kind: type[Any], name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is empty"):
        kind(**{name: " "})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "10.0.0.1", "example.org"])
def test_listening_to_the_world_without_tenants_has_to_be_asked_for(host: str) -> None:
    with pytest.raises(InvalidInput, match="allow-anonymous"):
        ApiConfig(host=host)
    ApiConfig(host=host, allow_anonymous=True)
    ApiConfig(host=host, tenants="tenants.toml")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_tenants(host: str) -> None:
    ApiConfig(host=host)


@pytest.mark.parametrize(
    "files", [{"tls_certificate": "a"}, {"tls_key": "a"}, {"tls_client_ca": "a"}], ids=lambda files: next(iter(files))
)
def test_files_of_tls_come_together(files: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="tls_"):
        ApiConfig(**files)  # type: ignore[arg-type]
