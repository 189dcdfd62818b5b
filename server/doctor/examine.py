"""All checks of a configuration, in the order in which one is the ground of the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from server.config import ModelConfig, ServerConfig
from server.doctor import environment
from server.doctor.certificates import tls, tls_client_ca, tls_key
from server.doctor.credentials import tenants
from server.doctor.finding import Finding, State, problem
from server.doctor.replicas import replicas

if TYPE_CHECKING:
    from server.model.outline import Outline

Check = Callable[..., Finding | Iterable[Finding]]


def examine_environment() -> Iterator[Finding]:
    """What no configuration changes."""
    yield from _guarded("python", environment.python_version)
    yield from _guarded("libraries", environment.libraries)
    yield from _guarded("stubs", environment.stubs)
    yield from _guarded("torch", environment.torch_build)
    yield from _guarded("clock", environment.clock)


def examine(config: ServerConfig, *, server: str = "", token: str | None = None) -> Iterator[Finding]:
    """Findings as they come.

    server   one that runs and is looked at too; the ports are then taken to be its own
    """
    yield from _guarded("base", _engine, config)
    yield from _guarded("disk", _disk, config)
    for address in config.cache.registries:
        yield from _guarded("registry", _registry, address)
    api = config.api
    if api.tenants:
        yield from _guarded("tenants", tenants, api)
    if api.tls_certificate:
        yield from _guarded("tls", tls, api)
        yield from _guarded("tls_key", tls_key, api)
    if api.tls_client_ca:
        yield from _guarded("tls_client_ca", tls_client_ca, api)
    if api.replicas:
        yield from _guarded("replicas", replicas, api)
    yield from _guarded("listening", _network, config, server, token)


def _guarded(name: str, check: Check, *arguments: object) -> Iterator[Finding]:
    """What a check finds. A mistake in it is a finding too, and the other checks go on."""
    try:
        found = check(*arguments)
        yield from (found,) if isinstance(found, Finding) else found
    except Exception as error:
        yield problem(name, f"this check failed itself: {type(error).__name__}: {error}", "report it with this line")


def _engine(config: ServerConfig) -> Iterator[Finding]:
    """What computes, the base, and the adapters, which are made for one base."""
    try:
        from server.doctor import machine
        from server.doctor.adapters import adapters
        from server.model.base import device_of, dtype_of
    except ImportError as error:
        yield problem(
            "base",
            f"neither base nor adapters were looked at: {error}",
            "mend what is said of torch and libraries",
        )
        return
    about_device = machine.device(config.model)
    yield about_device
    has_device = about_device.state is not State.PROBLEM
    if has_device:
        yield from _guarded("compute", machine.compute, config.model)
    yield from _guarded("cores", machine.cores, config.model, config.api)
    yield from _guarded("open_files", machine.open_files, config.api)
    outlines: list[Outline] = []
    yield from _guarded("base", _base, config.model, outlines)
    found = outlines[0] if outlines else None
    if found is not None and has_device:
        yield from _guarded("memory", machine.memory, config, found.num_parameters)
    device = device_of(config.model.device if has_device else "cpu")
    base, dtype = found.info if found is not None else None, dtype_of(config.model.dtype, device)
    yield from _guarded("adapters", adapters, config.cache, base, dtype)


def _base(model: ModelConfig, outlines: list[Outline]) -> Iterator[Finding]:
    """`outlines` gets that of a base that can be read."""
    from server.doctor.base import find_base, found_base, read_base, tokenizer

    folder = find_base(model.base)
    if isinstance(folder, Finding):
        yield folder
        return
    about_tokenizer, path = tokenizer(folder)
    outline = read_base(folder, model.base, path)
    if isinstance(outline, Finding):
        yield outline
        return
    outlines.append(outline)
    yield found_base(outline)
    yield about_tokenizer


def _disk(config: ServerConfig) -> Iterator[Finding]:
    from server.doctor.disk import disk, disk_space

    if config.cache.disk_path:
        about_folder = disk(config.cache)
        yield about_folder
        if about_folder.state is not State.PROBLEM:
            yield disk_space(config.cache)


def _registry(address: str) -> Finding:
    from server.doctor.remote import registry

    return registry(address)


def _network(config: ServerConfig, server: str, token: str | None) -> Iterator[Finding]:
    from server.doctor import network, remote

    yield network.listening(config.api)
    if server:
        yield remote.server(server, token)
    else:
        yield network.port(config.api, "port")
        yield network.port(config.api, "http_port")
