"""What each name is to point to, told to all replicas through the folder that they share: a log of orders.

<folder>/.orders.jsonl   a line that no other log has, then an order a line; the last one of a name counts
<folder>/.orders.lock    held while a line is written

An order is the whole state of a name, so only the last one has to be known. Everything here blocks: in one thread.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from adapters_cache.registry import is_name

FILE, LOCK = ".orders.jsonl", ".orders.lock"
COMPACT_BYTES = 4 << 20  # a log that is smaller is left as it is,
COMPACT_RATIO = 4  # as is one with fewer lines for each name
DIGEST, STAMP = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{1,64}")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What a name is to point to.

    digest, shares, history   as in a record; without a digest the name is unloaded
    stamps                    of the folders that held these digests, as far as they are kept
    stamp                     of the adapter's folder then
    """

    name: str
    digest: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    stamps: Mapping[str, str] = field(default_factory=dict)
    stamp: str = ""


class OrderLog:
    """Reads what was added since the last look, and adds.

    last   order of each name, of what was read so far
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / FILE
        self.last: dict[str, Order] = {}
        self._news: dict[str, Order] = {}  # read, and not given to anybody so far
        self._head, self._end, self._num_lines = b"", 0, 0  # of the log that was read, up to where

    def read(self) -> dict[str, Order]:
        """The orders that are others than `read` gave last, by name, but for one's own. Raises OSError."""
        self._look()
        news, self._news = self._news, {}
        return news

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile, and `last` is what counts. Raises OSError."""
        with (self._folder / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._look()
            yield

    def append(self, order: Order) -> None:
        """Write an order behind all others; only while `alone`. Raises OSError: nothing is written."""
        self._write(_line(_row(order)))
        self.last[order.name] = order
        with suppress(OSError):  # it is written, and read with the next look
            self._look()
        self._news.pop(order.name, None)
        self._compact()

    def _look(self) -> None:
        try:
            with self._path.open("rb") as file:  # each time: a network file system then looks for what is new
                found = self._read(file)
        except FileNotFoundError:
            return
        changed = {name: order for name, order in found.items() if self.last.get(name) != order}
        self.last |= changed
        self._news |= changed

    def _read(self, file: BinaryIO) -> dict[str, Order]:
        head = file.readline()
        if not head.endswith(b"\n"):  # it is being begun
            return {}
        if head != self._head or not self._goes_on(file):
            self._head, self._end, self._num_lines = head, len(head), 0
        file.seek(self._end)
        found: dict[str, Order] = {}
        for line in file:
            if not line.endswith(b"\n"):  # the rest is on its way, or never comes
                break
            self._end += len(line)
            self._num_lines += 1
            if (order := _parsed(line)) is not None:
                found[order.name] = order
        return found

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether a line ends where the last look did: a line that could not be synced may have been taken back."""
        file.seek(self._end - 1)
        return file.read(1) == b"\n"

    def _write(self, line: bytes) -> None:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if not _has_head(descriptor):
                os.ftruncate(descriptor, size := 0)
                line = _line({"log": uuid4().hex}) + line
            elif os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line  # what a kill has left ends here, and is no order
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def _compact(self) -> None:
        """Leave the last order of each name, in another file. What fails is tried with the next order."""
        if self._end <= COMPACT_BYTES or self._num_lines <= COMPACT_RATIO * len(self.last):
            return
        aside = self._path.with_suffix(".new")
        # who was away has to learn that a name was unloaded, but of names that are gone nobody asks
        last = {name: order for name, order in self.last.items() if order.digest or (self._folder / name).is_dir()}
        try:
            with aside.open("wb") as file:
                file.write(_line({"log": uuid4().hex}))
                file.writelines(_line(_row(order)) for order in last.values())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._path)
        except OSError as error:
            log.warning("the log of orders stays as long as it is: %s", error)
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        self.last = last
        with suppress(OSError):
            self._look()


def _has_head(descriptor: int) -> bool:
    return b"\n" in os.pread(descriptor, 256, 0)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _row(order: Order) -> dict[str, Any]:
    if not order.digest:
        return {"name": order.name, "unloaded": True}
    return {
        "name": order.name,
        "digest": order.digest,
        "shares": dict(order.shares),
        "history": order.history,
        "stamps": dict(order.stamps),
        "stamp": order.stamp,
    }


def _parsed(line: bytes) -> Order | None:
    """None for what is no order."""
    try:
        row = json.loads(line)
        if row.get("unloaded"):
            order = Order(row["name"])
        else:
            order = Order(row["name"], row["digest"], row["shares"], tuple(row["history"]), row["stamps"], row["stamp"])
        _check(order)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("a line of the log of orders is left out, which is none: %s", error)
        return None
    return order


def _check(order: Order) -> None:
    """Raises ValueError, TypeError: names and stamps become paths."""
    if not is_name(order.name) or "/" in order.name:
        raise ValueError(f"{order.name[:128]!r} is not the name of an adapter")
    digests = (*filter(None, (order.digest,)), *order.shares, *order.history, *order.stamps)
    stamps = (*filter(None, (order.stamp,)), *order.stamps.values())
    if bad := [text for text in digests if not DIGEST.fullmatch(text)]:
        raise ValueError(f"{bad[0][:80]!r} is not a digest")
    if bad := [text for text in stamps if not STAMP.fullmatch(text)]:
        raise ValueError(f"{bad[0][:80]!r} is not a stamp")
    percents = list(order.shares.values())
    if any(type(percent) is not int or not 0 <= percent < 100 for percent in percents) or sum(percents) > 99:
        raise ValueError(f"{percents} are not percentages beside another")
