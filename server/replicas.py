"""Where the replicas are: other servers of the same base and origin. On the event loop's thread."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

from server.config import DNS, FILE, ApiConfig, split_address
from server.errors import InvalidInput

log = logging.getLogger("adapterd")


class Replicas:
    """Looks every `reload_s`; what cannot be looked up now is as it was.

    own         host:port where callers reach this one; empty if it was not told
    addresses   host:port of all, sorted; empty where this one knows of no other
    """

    def __init__(self, api: ApiConfig) -> None:
        self._api = api
        self._task: asyncio.Task[None] | None = None
        self.own = ""
        self.addresses: tuple[str, ...] = ()

    async def start(self, port: int) -> None:
        """port   that this one listens on"""
        if self._api.advertise:
            host, own_port = split_address(self._api.advertise)
            self.own = f"{host}:{own_port or port}"
        if self._api.replicas:
            await self._look()
            self._task = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while self._api.reload_s:
            await asyncio.sleep(self._api.reload_s)
            await self._look()

    async def _look(self) -> None:
        place = self._api.replicas
        try:
            found = await look(place)
        except (OSError, ValueError, InvalidInput) as error:
            log.warning("replicas of %s are as they were: %s", place, error)
            return
        if found != self.addresses:
            log.info("replicas: %s", " ".join(found) or "none")
        self.addresses = found


async def look(place: str) -> tuple[str, ...]:
    """host:port of all that a place lists, sorted. Raises OSError, ValueError, InvalidInput."""
    if place.startswith(FILE):
        return await asyncio.to_thread(_listed, Path(place.removeprefix(FILE)))
    return await _resolved(*split_address(place.removeprefix(DNS)))


def _listed(path: Path) -> tuple[str, ...]:
    """Raises OSError, ValueError, InvalidInput."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    found = tuple(sorted({_complete(line) for line in lines if line}))
    if not found:
        raise ValueError("it lists nothing; it may be about to be written")
    return found


def _complete(address: str) -> str:
    if not split_address(address)[1]:
        raise ValueError(f"{address[:128]!r} has no port; write HOST:PORT")
    return address


async def _resolved(host: str, port: int) -> tuple[str, ...]:
    """Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    hosts = {str(sock[0]) for *_, sock in found}
    return tuple(sorted(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts))
