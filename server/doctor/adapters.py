"""Adapter folders: whether each adapter's configuration and header fit the base. Weights stay where they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from adapters_cache.formats.setups import is_setup, read_setup
from adapters_cache.lowering import lower
from adapters_cache.registry import is_name
from server.config import CacheConfig
from server.core import BaseInfo
from server.doctor.finding import Finding, ok, problem, warning
from server.errors import AdapterRefused, Internal, TooLarge, WrongBase

MAX_READ = 2000  # of a folder; a header takes some milliseconds
MAX_TOLD = 20


def adapters(cache: CacheConfig, base: BaseInfo | None, dtype: torch.dtype) -> Iterator[Finding]:
    """A finding per folder, then one per adapter that does not fit.

    base   None where it cannot be read: then adapters are only looked at for themselves
    """
    if not cache.adapters and not cache.registries:
        yield warning(
            "adapters",
            "no folder and no registry of adapters is named, so that only the base answers",
            "--adapters FOLDER (cache.adapters), or --registry ADDRESS (cache.registries)",
        )
    for folder in cache.adapters:
        yield from _folder(folder, cache, base, dtype)


def _folder(folder: Path, cache: CacheConfig, base: BaseInfo | None, dtype: torch.dtype) -> Iterator[Finding]:
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        yield problem(
            "adapters",
            f"{folder} cannot be listed: {error.strerror}",
            "create it, or leave it out of --adapters (cache.adapters)",
        )
        return
    found = _adapters_in(entries)
    if not found:
        yield warning(
            "adapters",
            f"{folder} holds no adapter, that is no sub-folder with an adapter_config.json",
            "name the folder above the adapters' own: --adapters (cache.adapters)",
        )
        return
    refused: dict[str, AdapterRefused] = {}
    for name, path in list(found.items())[:MAX_READ]:
        if (why := refusal(path, name, cache, base, dtype)) is not None:
            refused[name] = why
    yield _summary(folder, len(found), len(refused), base)
    for name, why in list(refused.items())[:MAX_TOLD]:
        yield problem("adapter", f"{name!r}: {why.message}", _remedy(why, found[name], cache))
    if len(refused) > MAX_TOLD:
        names = list(refused)[MAX_TOLD:]
        yield problem("adapter", f"{len(names)} more, {names[0]!r} the first", "mend those before, and ask again")
    if strange := [name for name in found if not is_name(name)]:
        yield warning(
            "adapter",
            f"{strange[0]!r} cannot be an adapter's name, and is left out"
            + (f" like {len(strange) - 1} more" if len(strange) > 1 else ""),
            f"rename its folder in {folder}: letters, digits, '.', '_' and '-'",
        )


def _adapters_in(entries: list[Path]) -> Mapping[str, Path]:
    """Folders of adapters by name, those of saved setups among them."""
    found: dict[str, Path] = {}
    for path in entries:
        if is_setup(path):
            try:
                setup = read_setup(path)
            except AdapterRefused:
                continue  # is left out by the server too, with a line in its log
            found |= {f"{path.name}/{name}": own for name, own in {**setup.adapters, **setup.fusions}.items()}
        elif is_adapter(path):
            found[path.name] = path
    return found


def _summary(folder: Path, num_found: int, num_refused: int, base: BaseInfo | None) -> Finding:
    looked = f", the first {MAX_READ} were looked at" if num_found > MAX_READ else ""
    fit = f"fit {base.name}" if base is not None else "can be read"
    message = f"{folder}: {min(num_found, MAX_READ) - num_refused} of {num_found} adapters {fit}{looked}"
    if num_refused:
        return warning("adapters", message, "see the adapters below; the others are served")
    return ok("adapters", message)


@torch.no_grad()
def refusal(
    path: Path, name: str, cache: CacheConfig, base: BaseInfo | None, dtype: torch.dtype
) -> AdapterRefused | None:
    """Why an adapter would be refused, as far as its configuration and its tensors' names and shapes tell."""
    try:
        checkpoint = read_checkpoint(path, name=name, max_bytes=cache.max_adapter_bytes, only_shapes=True)
        if base is None:
            return None
        # the base's fingerprint is of its weights, which nobody has read
        spec, _ = lower(replace(checkpoint, base_fingerprint=""), base)
        _check_size(spec.num_elements * dtype.itemsize, cache)
    except AdapterRefused as error:
        return error
    except (Internal, NotImplementedError):
        return None  # its method asks for the base's weights, or for values of its own
    return None


def _check_size(size_bytes: int, cache: CacheConfig) -> None:
    for tier in ("device_bytes", "host_bytes"):
        if size_bytes > (budget := getattr(cache, tier)):
            raise TooLarge(f"it takes {size_bytes} bytes, {tier} is {budget}", setting=tier, size=str(size_bytes))


def _remedy(error: AdapterRefused, path: Path, cache: CacheConfig) -> str:
    aside = f"move {path} out of --adapters (cache.adapters)"
    if isinstance(error, WrongBase):
        return f"serve it on the base it was trained on: --base (model.base); or {aside}"
    if isinstance(error, TooLarge):
        return f"--set cache.{error.metadata['setting']}={error.metadata['size']} or more; or {aside}"
    if "max_adapter_bytes" in error.message:
        return f"--set cache.max_adapter_bytes above {cache.max_adapter_bytes}; or {aside}"
    return f"copy it there again, or train it in a form that is served (docs/adapters.md); or {aside}"
