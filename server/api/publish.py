"""Stage 0, publishing: the files of an adapter from a caller to the folder that the engine reads."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from adapterd.v1 import adapters_pb2 as v1
from adapters_cache.registry import is_name
from adapters_cache.version_files import VersionFiles
from server.api.convert import to_name
from server.audit import Audit
from server.core import ANYONE, BASE, AdapterStatus, BaseInfo, Tenant, Tier
from server.errors import AdapterNotFound, InvalidInput, Overloaded, TooLarge, Unavailable
from server.folders import PUBLISH_LOCK, folder_beside, put_in_place
from server.tenants import require_own

MAX_FILES = 100
MAX_PUBLISHING = 8  # at a time, by all callers of this process
MAX_CHECKING = 2  # of those, in threads that others need too
SETUP_CONFIG = "adapter_setup.json"  # as adapters_cache.formats.setups calls it, which brings torch along


class Engine(Protocol):
    """The part of the engine that this file uses."""

    async def get(self, name: str, tenant: str) -> AdapterStatus: ...
    async def load(self, name: str, tenant: str, percent: int = 100) -> tuple[AdapterStatus, str]: ...


class Publisher:
    """One at a time, in all processes that publish to `folder`.

    folder     None where nothing may be published
    versions   keeps the files that others take the place of, for replicas that do not have them
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path | None,
        max_bytes: int,
        audit: Audit,
        base: BaseInfo | None = None,
        versions: VersionFiles | None = None,
    ) -> None:
        self._engine, self._folder, self._max_bytes, self._base = engine, folder, max_bytes, base
        self._versions = versions
        self._audit = audit
        self._num_publishing = 0
        self._checking = asyncio.Semaphore(MAX_CHECKING)
        self._swapping = asyncio.Lock()  # so that one thread at most waits for the lock of the folder

    async def publish(
        self, messages: AsyncIterator[v1.PublishRequest], tenant: Tenant = ANYONE
    ) -> tuple[AdapterStatus, str]:
        """The adapter as it is served now, and the digest before.

        Files are read aside, put in place together and then loaded; should that fail, those before are back.
        Raises InvalidInput, TooLarge, and what loading raises.
        """
        if self._folder is None:
            raise InvalidInput("this server takes no adapters: start it with --set api.publish_folder=FOLDER")
        first = await anext(messages, None)
        if first is None:
            raise InvalidInput("no files were sent; send at least adapter_config.json and adapter.safetensors")
        name = to_name(first.name)
        if name == BASE or "/" in name or not is_name(name):
            raise InvalidInput(f"{name!r} cannot be the name of a published adapter")
        with self._audit.action(tenant, "Publish", name):
            require_own(tenant, name)
            if self._num_publishing >= MAX_PUBLISHING:
                raise Overloaded(f"{self._num_publishing} adapters are being published, the limit", retry_after_s=5.0)
            self._num_publishing += 1
            try:
                return await self._publish(first, messages, name, tenant.name)
            finally:
                self._num_publishing -= 1

    async def _publish(
        self, first: v1.PublishRequest, messages: AsyncIterator[v1.PublishRequest], name: str, tenant: str
    ) -> tuple[AdapterStatus, str]:
        assert self._folder is not None
        into = self._folder / name
        percent = first.percent if first.HasField("percent") else 100
        if percent < 100:
            await self._load_other(name, tenant)
        with folder_beside(into) as aside:
            await self._receive(first, messages, aside)
            async with self._checking:
                await asyncio.to_thread(_check, aside, name, self._base)
            swap = asyncio.create_task(self._swap(name, aside, into, percent, tenant))
            try:
                return await asyncio.shield(swap)
            except asyncio.CancelledError:
                await asyncio.wait([swap])  # half of it would leave folder and engine apart
                raise

    async def _load_other(self, name: str, tenant: str) -> None:
        """Have what a new version is to share the requests with loaded, while its folder still holds it."""
        try:
            status = await self._engine.get(name, tenant)
        except AdapterNotFound:
            raise InvalidInput(f"{name!r} has no version yet to share its requests; publish without percent") from None
        # its files may be kept while its folder holds a later version
        is_kept = self._versions is not None and bool(status.versions and status.versions[0].digest)
        if status.tier is Tier.ORIGIN and not is_kept:
            await self._engine.load(name, tenant)

    async def _swap(self, name: str, aside: Path, into: Path, percent: int, tenant: str) -> tuple[AdapterStatus, str]:
        async with self._swapping, _alone(into.parent):
            if self._versions is not None:
                await self._keep(self._versions, name)
            was_there = await asyncio.to_thread(put_in_place, aside, into)
            try:
                return await self._engine.load(name, tenant, percent)
            except BaseException:
                if was_there:
                    await asyncio.to_thread(put_in_place, aside, into)
                else:
                    await asyncio.to_thread(shutil.rmtree, into, True)
                raise

    async def _keep(self, versions: VersionFiles, name: str) -> None:
        try:
            await asyncio.to_thread(versions.keep, name)
        except OSError as error:
            raise Unavailable(
                f"the version of {name!r} before cannot be kept in publish_folder: {error.strerror}; see that there is"
                " room and that the server may write"
            ) from error

    async def _receive(self, first: v1.PublishRequest, rest: AsyncIterator[v1.PublishRequest], aside: Path) -> None:
        """Write every piece to its file."""
        done: set[str] = set()
        num_bytes, path, file = 0, "", None
        try:
            async for message in _with(first, rest):
                num_bytes += len(message.content)
                if num_bytes > self._max_bytes:
                    raise TooLarge(f"the files have more than {self._max_bytes} bytes, the limit (max_publish_bytes)")
                if message.path != path or file is None:
                    if message.path in done:
                        raise InvalidInput(f"pieces of {message.path!r} do not follow each other")
                    if file is not None:
                        file.close()
                    path, file = message.path, await asyncio.to_thread(_opened, aside, message.path)
                    done.add(path)
                    if len(done) > MAX_FILES:
                        raise InvalidInput(f"more than {MAX_FILES} files are no adapter")
                await asyncio.to_thread(file.write, message.content)
        finally:
            if file is not None:
                file.close()


@asynccontextmanager
async def _alone(folder: Path) -> AsyncIterator[None]:
    """Only one task of all processes at a time; the lock goes with the process that holds it."""
    with (folder / PUBLISH_LOCK).open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield


def _check(folder: Path, name: str, base: BaseInfo | None) -> None:
    """Raises what reading the adapter raises, and WrongBase: before anybody can find it."""
    # where nobody publishes, a front process does without torch
    from adapters_cache.formats.adapterhub import read_checkpoint
    from adapters_cache.lowering import check_base

    checkpoint = read_checkpoint(folder, name=name)
    if base is not None:
        check_base(checkpoint, base)


async def _with(first: v1.PublishRequest, rest: AsyncIterator[v1.PublishRequest]) -> AsyncIterator[v1.PublishRequest]:
    yield first
    async for message in rest:
        yield message


def _opened(folder: Path, path: str) -> BinaryIO:
    """A new file at a relative path.

    Raises InvalidInput for one that leads out of the folder, is hidden, or would make it a composition of others.
    """
    parts = PurePosixPath(path).parts
    if (
        not 1 <= len(parts) <= 2
        or len(path) > 200
        or any(part.startswith((".", "/")) or part == SETUP_CONFIG for part in parts)
        or "\\" in path
    ):
        raise InvalidInput(f"{path[:100]!r} is not the path of a file of an adapter: NAME or HEAD/NAME")
    target = folder.joinpath(*parts)
    try:
        target.parent.mkdir(exist_ok=True)
        return target.open("xb")
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{path!r} cannot be written; give each file one path") from error
