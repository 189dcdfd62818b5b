"""One front process, from the engine process's side."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from server.errors import Unavailable
from server.fronts.front import Setup
from server.fronts.peer import Handler, Peer
from server.totals import Snapshot

START_TIMEOUT_S = 60.0


class FrontProcess:
    """Starts, drains and ends one process. Use `start` once."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._peer = Peer(handlers)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "start comes first"
        return self._process.pid

    async def start(self, setup: Setup) -> None:
        """Returns when it takes calls. Raises what it raised, or Unavailable if it ended before; it has ended then."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await self._peer.open(ours)
                await self._spawn(theirs.fileno(), setup.ledger_fd)
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._peer.call("start", setup)
        except BaseException as error:
            await self.kill()
            if isinstance(error, TimeoutError):
                raise Unavailable(f"a front process took longer than {START_TIMEOUT_S:g} s to start") from error
            raise

    async def _spawn(self, fd: int, ledger_fd: int) -> None:
        """With the modules of this process, wherever they came from."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "server.fronts", str(fd)),
            pass_fds=(fd, ledger_fd),
            stdin=asyncio.subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True,  # a Ctrl-C of the terminal is for the engine process
        )

    def tell(self, name: str, *arguments: Any) -> None:
        """A call whose outcome is nobody's concern."""
        self._peer.tell(name, *arguments)

    async def drain(self) -> tuple[int, Snapshot]:
        """See `Front.drain`; the process ends. Raises Unavailable if it ended before."""
        counted: tuple[int, Snapshot] = await self._peer.call("drain")
        self._peer.close()
        await self.wait()
        return counted

    async def wait(self) -> int:
        """Until it has ended; gives its exit code."""
        assert self._process is not None, "start comes first"
        return await self._process.wait()

    async def kill(self) -> None:
        """End it at once. What it asked for is dropped."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        self._peer.close()
