"""The Hugging Face Hub as a registry: one repository per adapter."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from adapters_cache.sharing.artefact import MANIFEST, SUFFIXES, Artefact, Progress, arrived, check_revision
from adapters_cache.sharing.failures import failures, redacted
from server.errors import AdapterNotFound, InvalidInput, MalformedCheckpoint, Unavailable

ADAPTERS = "adapter-transformers"  # the tag under which AdapterHub's library, and our cards, list adapters
ENVELOPES = ("adapter_config.json", "head_config.json", "adapter_fusion_config.json")


class HubRegistry:
    """`endpoint` and `token` as in huggingface_hub: without them its environment variables and stored login count."""

    def __init__(self, endpoint: str | None = None, token: str | None = None) -> None:
        self._api = HfApi(endpoint=endpoint, token=token)
        self._token = token

    def push(
        self,
        folder: Path,
        artefact: Artefact,
        progress: Progress = lambda done, total: None,
        *,
        is_private: bool = False,
    ) -> Artefact:
        """One commit with these files and no others, so that nobody sees half of them; then the tags.

        Gives the artefact with the commit as its revision.
        """
        for tag in artefact.tags:
            check_revision(tag)
        manifest = CommitOperationAdd(MANIFEST, artefact.dumps().encode())
        files = [CommitOperationAdd(path, str(folder / path)) for path in artefact.files]
        with failures(f"push of {artefact.name}"), _told(artefact.name):
            self._api.create_repo(artefact.name, private=is_private or None, exist_ok=True)
            before = self._api.model_info(artefact.name, revision="main").siblings or ()
            gone = [
                CommitOperationDelete(path)
                for path in (sibling.rfilename for sibling in before)
                if PurePosixPath(path).suffix in SUFFIXES and path not in artefact.files and path != MANIFEST
            ]
            commit = self._api.create_commit(
                artefact.name, [*gone, *files, manifest], commit_message=f"adapterd {artefact.revision[:12]}"
            )
            known = {ref.name for ref in self._api.list_repo_refs(artefact.name).tags} if artefact.tags else set()
            for tag in artefact.tags:
                if tag in known:
                    self._api.delete_tag(artefact.name, tag=tag)
                self._api.create_tag(artefact.name, tag=tag, revision=commit.oid)
        progress(artefact.size_bytes, artefact.size_bytes)
        return replace(artefact, revision=commit.oid)

    def find(self, name: str, revision: str = "main") -> Artefact:
        """What a repository holds at a branch, tag or commit.

        A repository that adapterd did not push has no manifest: checksums are then those that the hub itself gives,
        which it has for large files; `revision` is the commit.
        Raises AdapterNotFound, Unavailable for a gated repository, InvalidInput.
        """
        _check_repository(name)
        with failures(f"look-up of {name}"), _told(name):
            info = self._api.model_info(name, revision=revision, files_metadata=True)
        files = {
            s.rfilename: (s.lfs.sha256 if s.lfs else "", s.size or 0)
            for s in info.siblings or ()
            if PurePosixPath(s.rfilename).suffix in SUFFIXES and s.rfilename != MANIFEST
        }
        if not any(PurePosixPath(path).name in ENVELOPES for path in files):
            raise MalformedCheckpoint(f"{name} holds no adapter: none of {', '.join(ENVELOPES)}")
        card: Any = info.card_data
        facts: dict[str, Any] = card.to_dict() if card else {}
        known: Artefact | None = None
        has_manifest = any(s.rfilename == MANIFEST for s in info.siblings or ())
        if has_manifest:
            known = Artefact.loads(self._bytes(name, MANIFEST, info.sha), f"{name}/{MANIFEST}")
            # what the hub knows of a large file is of this very commit; cards are edited there
            files = {
                path: files[path] if files[path][0] or path.endswith(".md") else entry
                for path, entry in known.files.items()
                if path in files
            }
        return Artefact(
            name=name,
            revision=str(info.sha),
            files=files,
            base=known.base if known else str(facts.get("base_model", "")),
            task=known.task if known else "",
            language=known.language if known else str(facts.get("language", "")),
            method=known.method if known else "",
            tags=tuple(info.tags or ()),
        )

    def pull(self, artefact: Artefact, into: Path, progress: Progress = lambda done, total: None) -> Path:
        """Raises MalformedCheckpoint on a checksum that does not hold."""

        def fetch(path: str, target: Path) -> None:
            with (
                failures(f"pull of {artefact.name}"),
                _told(artefact.name),
                tempfile.TemporaryDirectory(prefix="adapterd-pull-") as folder,
            ):
                shutil.move(self._download(artefact.name, path, artefact.revision, Path(folder)), target)

        return arrived(artefact, into, fetch, progress)

    def search(
        self, text: str = "", *, task: str = "", language: str = "", base: str = "", author: str = "", limit: int = 100
    ) -> Iterator[Artefact]:
        """Repositories tagged as adapters, by the hub's own filters; their files are not looked at.

        author   an organization or user, "" for all
        """
        filters = [ADAPTERS, *([task] if task else ()), *([language] if language else ())]
        if base:
            filters.append(f"base_model:{base}")
        with failures("search of the hub"):
            found = list(self._api.list_models(author=author or None, search=text or None, filter=filters, limit=limit))
        for info in found:
            yield Artefact(name=info.id, revision=str(info.sha or ""), files={}, tags=tuple(info.tags or ()))

    def _bytes(self, name: str, path: str, revision: Any) -> bytes:
        with failures(f"look-up of {name}"), _told(name), tempfile.TemporaryDirectory() as folder:
            return Path(self._download(name, path, str(revision), Path(folder))).read_bytes()

    def _download(self, name: str, path: str, revision: str, folder: Path) -> str:
        return hf_hub_download(
            name, path, revision=revision, local_dir=folder, endpoint=self._api.endpoint, token=self._token
        )


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What the hub refuses, as our errors."""
    try:
        yield
    except GatedRepoError:
        raise Unavailable(
            f"{name} is gated: ask for access on its page, then log in (hf auth login) or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise AdapterNotFound(f"{name} has no such revision; give a branch, tag or commit of it") from None
    except RepositoryNotFoundError:
        raise AdapterNotFound(f"the hub has no {name}, or it is private and nobody is logged in (HF_TOKEN)") from None
    except HfHubHTTPError as error:
        raise Unavailable(f"{name}: the hub answers {redacted(str(error))}") from None


def _check_repository(name: str) -> None:
    """Raises InvalidInput."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise InvalidInput(f"{name[:100]!r} is not a repository of the hub (organization/name)") from error
