"""What travels between registries: the files of one adapter, each with its checksum, and what the card says of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapters_cache.formats.adapterhub import check_replaceable, is_adapter, read_checkpoint
from server.errors import InvalidInput, MalformedCheckpoint
from server.folders import folder_beside, put_in_place

MANIFEST = "adapterd.json"
SUFFIXES = (".json", ".safetensors", ".bin", ".md", ".png", ".txt")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Artefact:
    """One published state of an adapter.

    revision   sha256 over its files, hex: the same files have the same revision everywhere
    files      relative path to (sha256, bytes); "" where nobody knows the checksum
    """

    name: str
    revision: str
    files: Mapping[str, tuple[str, int]]
    base: str = ""
    task: str = ""
    language: str = ""
    method: str = ""
    model_type: str = ""
    tags: tuple[str, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self.files.values())

    def dumps(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def loads(cls, text: str | bytes, where: str) -> Artefact:
        """Raises MalformedCheckpoint."""
        try:
            raw: dict[str, Any] = json.loads(text)
            files = {str(path): (str(digest), int(size)) for path, (digest, size) in raw.pop("files").items()}
            return cls(files=files, **{**raw, "tags": tuple(raw.get("tags", ()))})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MalformedCheckpoint(f"{where} is not a manifest of adapterd: {error}", field=MANIFEST) from error


def describe(folder: Path, name: str, *, task: str = "", language: str = "", tags: tuple[str, ...] = ()) -> Artefact:
    """The artefact that a folder is. What is not given is taken from its metrics.json, the rest from its weights.

    Reads all files: not on the event loop. Raises InvalidInput for a folder without an adapter, and what reading it
    raises: nothing is shared that could not be served.
    """
    if not folder.is_dir() or not is_adapter(folder):
        raise InvalidInput(f"{folder} holds no adapter: no adapter_config.json, head_config.json or fusion")
    checkpoint = read_checkpoint(folder)
    facts = _facts(folder)
    files = {
        path.relative_to(folder).as_posix(): (digest_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in SUFFIXES and path.name != MANIFEST
    }
    return Artefact(
        name=name,
        revision=revision_of(files),
        files=files,
        base=str(facts.get("base", "")),
        task=task or str(facts.get("task", "")),
        language=language or str(facts.get("language", "")),
        method=checkpoint.method,
        model_type=checkpoint.model_type,
        tags=tags,
    )


def revision_of(files: Mapping[str, tuple[str, int]]) -> str:
    """sha256, hex, of paths and checksums."""
    lines = (f"{path} {digest}\n" for path, (digest, _) in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_revision(revision: str) -> str:
    """Raises InvalidInput for what cannot be a revision or tag."""
    if not REVISION.fullmatch(revision):
        raise InvalidInput(
            f"revision {revision[:100]!r} is not letters, digits, dots, dashes and underscores, up to 100"
        )
    return revision


def arrived(artefact: Artefact, into: Path, fetch: Callable[[str, Path], None], progress: Progress) -> Path:
    """Have every file fetched and checked, then put the folder in place: it appears as a whole or not at all.

    into    the adapter's folder to be
    fetch   brings the file of a relative path to a place
    Raises InvalidInput where something else than an adapter is there, MalformedCheckpoint for a file whose checksum is
    another, and what `fetch` raises.
    """
    check_replaceable(into)
    with folder_beside(into) as aside:
        done = 0
        for path, (digest, size) in artefact.files.items():
            target = aside / inside(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            fetch(path, target)
            if digest and (found := digest_of(target)) != digest:
                raise MalformedCheckpoint(
                    f"{artefact.name}: {path} has sha256 {found[:12]}..., the manifest says {digest[:12]}...;"
                    " it was damaged on the way or changed at its origin: pull again",
                    field=path,
                )
            done += size
            progress(done, artefact.size_bytes)
        (aside / MANIFEST).write_text(artefact.dumps(), encoding="utf-8")
        put_in_place(aside, into)
    return into


def inside(path: str) -> Path:
    """Raises MalformedCheckpoint for a path that leads out of its folder."""
    parts = Path(path).parts
    if not parts or Path(path).is_absolute() or ".." in parts:
        raise MalformedCheckpoint(f"{path!r} is not inside its folder", field=MANIFEST)
    return Path(path)


def _facts(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
