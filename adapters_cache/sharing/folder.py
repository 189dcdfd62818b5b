"""A registry in a folder or object store, through fsspec.

<root>/<name>/<revision>/<files>, and last adapterd.json: without it the revision is not there
<root>/<name>/refs/<tag>                               the revision that a tag, "main" among them, points to
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec

from adapters_cache.registry import is_name
from adapters_cache.sharing.artefact import MANIFEST, Artefact, Progress, arrived, check_revision, revision_of
from adapters_cache.sharing.failures import failures, redacted
from server.errors import AdapterNotFound, InvalidInput, MalformedCheckpoint, Unavailable

log = logging.getLogger(__name__)
REFS, MAIN, PARTIAL = "refs", "main", ".partial"


class FolderRegistry:
    """`root` is a path or an fsspec URL: `./registry`, `s3://bucket/adapters`, `memory://x`.

    options   of fsspec's file system, credentials among them; never shown
    """

    def __init__(self, root: str, options: dict[str, Any] | None = None) -> None:
        try:
            self._fs, self._path = fsspec.core.url_to_fs(root, **(options or {}))
        except (ImportError, ValueError) as error:
            raise InvalidInput(f"registry {redacted(root)!r}: {redacted(str(error))}") from None
        self.root = redacted(root)  # what is shown of it

    def push(self, folder: Path, artefact: Artefact, progress: Progress = lambda done, total: None) -> Artefact:
        """Send the files of `folder`, unless they are there, then point "main" and the artefact's tags at them."""
        _check_name(artefact.name)
        for tag in artefact.tags:
            check_revision(tag)
        place = self._at(artefact.name, artefact.revision)
        with failures(f"push of {artefact.name} at {self.root}"):
            if not self._fs.exists(f"{place}/{MANIFEST}"):
                done = 0
                for path, (_, size) in artefact.files.items():
                    content = (folder / path).read_bytes()
                    if hashlib.sha256(content).hexdigest() != artefact.files[path][0]:
                        raise InvalidInput(f"{path} changed while it was pushed; push again")
                    self._put(f"{place}/{path}", content)
                    done += size
                    progress(done, artefact.size_bytes)
                self._put(f"{place}/{MANIFEST}", artefact.dumps().encode())
            for tag in (MAIN, *artefact.tags):
                self._put(self._at(artefact.name, REFS, tag), artefact.revision.encode())
        return artefact

    def find(self, name: str, revision: str = MAIN) -> Artefact:
        """By tag, or by the first 8 or more digits of a revision. Raises AdapterNotFound with what there is."""
        _check_name(name)
        check_revision(revision)
        with failures(f"look-up of {name} at {self.root}"):
            ref = self._at(name, REFS, revision)
            found = self._fs.cat_file(ref).decode().strip() if self._fs.exists(ref) else self._matching(name, revision)
            if found is None:
                known = ", ".join(sorted(self._tags(name))) or "none"
                raise AdapterNotFound(f"{self.root} has no {name!r} of revision {revision!r}; tags there: {known}")
            return self._read(name, found)

    def pull(self, artefact: Artefact, into: Path, progress: Progress = lambda done, total: None) -> Path:
        """Bring an artefact that `find` gave. Raises MalformedCheckpoint on a checksum that does not hold."""

        def fetch(path: str, target: Path) -> None:
            with failures(f"pull of {artefact.name} at {self.root}"):
                self._fs.get_file(f"{self._at(artefact.name, artefact.revision)}/{path}", str(target))

        return arrived(artefact, into, fetch, progress)

    def search(self, text: str = "", *, task: str = "", language: str = "", base: str = "") -> Iterator[Artefact]:
        """Every adapter's "main", by name: those whose name holds `text` and whose other fields are as given."""
        with failures(f"listing of {self.root}"):
            if not self._fs.exists(self._path):
                raise Unavailable(f"{self.root} is not there; nothing was pushed to it yet, or it is not mounted")
            names = sorted(PurePosixPath(p).parent.parent.name for p in self._fs.glob(f"{self._path}/*/{REFS}/{MAIN}"))
        wanted = {"task": task, "language": language, "base": base}
        for name in names:
            if text in name:
                try:
                    found = self.find(name)
                except (AdapterNotFound, MalformedCheckpoint) as error:
                    log.warning("%s is left out: %s", name, error.message)
                    continue
                if all(not value or getattr(found, field) == value for field, value in wanted.items()):
                    yield found

    def _at(self, *parts: str) -> str:
        return "/".join((self._path.rstrip("/"), *parts))

    def _put(self, path: str, content: bytes) -> None:
        """As a whole, also in folders, where writing takes a while."""
        aside = f"{path}.{uuid4().hex}{PARTIAL}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(aside, content)
        self._fs.mv(aside, path)

    def _matching(self, name: str, revision: str) -> str | None:
        if len(revision) < 8:
            return None
        found = [PurePosixPath(p).parent.name for p in self._fs.glob(f"{self._at(name)}/{revision}*/{MANIFEST}")]
        return found[0] if len(found) == 1 else None

    def _tags(self, name: str) -> list[str]:
        found = [PurePosixPath(p).name for p in self._fs.glob(f"{self._at(name, REFS)}/*")]
        return [tag for tag in found if not tag.endswith(PARTIAL)]

    def _read(self, name: str, revision: str) -> Artefact:
        path = f"{self._at(name, revision)}/{MANIFEST}"
        found = Artefact.loads(self._fs.cat_file(path), redacted(path))
        if not found.revision == revision == revision_of(found.files):
            raise MalformedCheckpoint(f"{redacted(path)} is not of the files that its revision names", field=MANIFEST)
        return found


def _check_name(name: str) -> None:
    """Raises InvalidInput."""
    if not is_name(name) or "/" in name:
        raise InvalidInput(f"{name[:100]!r} cannot be the name of an adapter in a folder registry")
