"""What is known of every name, kept on disk: a start reads this instead of weights.

One SQLite file. Writes are gathered and done by one thread; each is a transaction, so that a kill leaves what was
there before or after it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters_cache.registry import Record
from server.core import Manifest, Tier
from server.errors import InvalidInput, Unavailable

FILE = "index.db"
DELAY_S = 0.2  # how long changes are gathered
RETRY_S = 5.0  # after a write that failed
VERSION = "1"
log = logging.getLogger(__name__)

TABLES = """
create table if not exists facts (key text primary key, value text not null);
create table if not exists adapters (name text primary key, record text not null);
"""


class Index:
    """On the event loop's thread; files are touched in a thread of its own."""

    def __init__(self, folder: Path, base_fingerprint: str) -> None:
        """An index of another base, or of another version, is begun anew. Raises InvalidInput."""
        self._path = folder / FILE
        self._thread = ThreadPoolExecutor(1, "index")
        self._dirty: dict[str, str | None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._facts = {"version": VERSION, "base": base_fingerprint}

    async def load(self) -> dict[str, dict[str, Any]]:
        """What is known, by name."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def note(self, record: Record) -> None:
        """Keep what is known of a name, soon."""
        self._dirty[record.name] = json.dumps(_row(record), separators=(",", ":"))
        self._schedule()

    def forget(self, name: str) -> None:
        self._dirty[name] = None
        self._schedule()

    async def flush(self) -> None:
        """Return when everything noted so far is on disk. Raises Unavailable where that fails; it is tried again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        changes, self._dirty = self._dirty, {}
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, changes)
        except sqlite3.Error as error:
            self._dirty = {**changes, **self._dirty}
            raise Unavailable(
                f"the index cannot be written: {error}; what was asked for may not outlive a restart"
            ) from error

    async def close(self) -> None:
        with suppress(Unavailable):
            await self.flush()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _schedule(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._task = asyncio.create_task(self._flush_or_try_again())

    async def _flush_or_try_again(self) -> None:
        try:
            await self.flush()
        except Unavailable as error:
            log.error("%s", error.message)
            self._timer = asyncio.get_running_loop().call_later(RETRY_S, self._begin)

    # in the thread

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            return self._opened()
        except sqlite3.OperationalError as error:  # locked, full, unreadable: nothing is wrong with what it holds
            raise InvalidInput(f"the index in {self._path.parent.name!r} cannot be opened: {error}") from error
        except sqlite3.DatabaseError as error:
            log.warning("the index is begun anew: %s", error)
            for path in self._path.parent.glob(f"{FILE}*"):
                path.unlink()
            return self._opened()

    def _opened(self) -> dict[str, dict[str, Any]]:
        self._database = sqlite3.connect(self._path, isolation_level=None)
        self._database.execute("pragma journal_mode=wal")
        self._database.execute("pragma synchronous=full")
        self._database.executescript(TABLES)
        if dict(self._database.execute("select key, value from facts")) != self._facts:
            with self._transaction():
                self._database.execute("delete from adapters")
                self._database.execute("delete from facts")
                self._database.executemany("insert into facts values (?, ?)", self._facts.items())
        return {name: json.loads(row) for name, row in self._database.execute("select name, record from adapters")}

    def _write(self, changes: dict[str, str | None]) -> None:
        if not changes:
            return
        kept = [(name, row) for name, row in changes.items() if row is not None]
        gone = [(name,) for name, row in changes.items() if row is None]
        with self._transaction():
            self._database.executemany("insert or replace into adapters values (?, ?)", kept)
            self._database.executemany("delete from adapters where name = ?", gone)

    def _transaction(self) -> Any:
        return _Transaction(self._database)

    def _close(self) -> None:
        self._database.close()


class _Transaction:
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("begin immediate")

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self._database.execute("rollback" if kind else "commit")


def _row(record: Record) -> dict[str, Any]:
    return {
        "place": record.source.place,
        "digest": record.digest,
        "shares": dict(record.shares),
        "history": record.history,
        "stamp": record.stamp,
        "manifest": asdict(record.manifest) if record.manifest else None,
        "sizes": {tier.value: size for tier, size in record.sizes.items()},
        "task": record.task,
        "labels": record.labels,
        "heads": record.heads,
        "is_pinned": record.is_pinned,
        "loaded_at": record.loaded_at,
        "last_used_at": record.last_used_at,
    }


def restore(record: Record, row: Mapping[str, Any], stamp: str) -> tuple[str, Mapping[str, int]]:
    """Give a record what was known of it; the digest and the shares that its name is to point to.

    stamp   of its source now: if that is another one, the name points to nothing, and can go back to what it pointed to
    """
    record.is_pinned = row["is_pinned"]
    record.history = tuple(row["history"])
    record.last_used_at = row["last_used_at"]
    if row["stamp"] != stamp:
        record.history = tuple(dict.fromkeys(filter(None, (row["digest"], *row["shares"], *row["history"]))))
        return "", {}
    record.stamp = stamp
    record.manifest = Manifest(**row["manifest"]) if row["manifest"] else None
    record.sizes = {Tier(tier): size for tier, size in row["sizes"].items()}
    record.task, record.labels, record.heads = row["task"], tuple(row["labels"]), tuple(row["heads"])
    record.loaded_at = row["loaded_at"]
    if record.manifest and not (row["shares"] or row["history"]):
        record.stamps = {row["digest"]: stamp}
    return row["digest"], row["shares"]
