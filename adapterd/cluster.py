"""Which replicas there are: any of them tells, and a thread asks again and again. Used by both clients."""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc

from adapterd import calls
from adapterd.calls import Metadata
from adapterd.errors import Error, from_rpc_error
from adapterd.rings import Address, Make, Options, Rings, over
from adapterd.v1 import replicas_pb2

SCHEME = "cluster:"
FOLLOW_S = 1.0  # between looks at the list of replicas
LOOK_TIMEOUT_S = 2.0
RETRY_S = 0.1  # between looks of one who waits for the first replica

log = logging.getLogger("adapterd")


def seeds_of(server: str) -> tuple[str, ...]:
    """host:port of the replicas that "cluster:HOST:PORT,HOST:PORT" names; none for a single server's address.

    Raises ValueError for one without a port.
    """
    if not server.startswith(SCHEME):
        return ()
    seeds = tuple(seed.strip() for seed in server.removeprefix(SCHEME).split(","))
    for seed in seeds:
        _split(seed)
    return seeds


def host_of(seed: str) -> str:
    """What a certificate of any replica has to name: they are reached by addresses that certificates do not have."""
    return seed.rpartition(":")[0]


class Follower:
    """Keeps the rings of a client up to date, from the first call on.

    make   a blocking channel, whatever the rings have
    """

    def __init__(
        self, rings: Rings[Any], make: Make[grpc.Channel], options: Options, seeds: Sequence[str], metadata: Metadata
    ) -> None:
        self._rings, self._make, self._options = rings, make, options
        self._seeds, self._metadata = seeds, metadata
        self._channel: grpc.Channel | None = None
        self._listed: tuple[str, ...] = ()  # by the last look
        self._looking = threading.Lock()
        self._failed_at, self._failure = 0.0, Error(grpc.StatusCode.UNAVAILABLE, "nobody has looked yet")
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="adapterd replicas", daemon=True)

    @property
    def is_ready(self) -> bool:
        return self._rings.is_known

    def ready(self, timeout: float | None = None) -> None:
        """Return once there is a list. Blocks; who waits for another's look shares what comes of it.

        Raises Error where no replica tells of the others, DEADLINE_EXCEEDED where that takes longer than `timeout`,
        CANCELLED once the client is closed.
        """
        if self._rings.is_known:
            return
        began = time.monotonic()
        if not self._looking.acquire(timeout=-1 if timeout is None else timeout):
            raise too_late(timeout)
        try:
            if self._rings.is_known:
                return
            self._require_open()
            if self._failed_at > began:
                raise self._failure
            left = LOOK_TIMEOUT_S if timeout is None else max(0.0, began + timeout - time.monotonic())
            try:
                self._look_first(min(LOOK_TIMEOUT_S, left))
            except Error as error:
                if left >= LOOK_TIMEOUT_S:  # one that had less time says nothing to those who have more
                    self._failed_at, self._failure = time.monotonic(), error
                raise
            self._require_open()
            self._thread.start()
        finally:
            self._looking.release()

    def wait(self, timeout: float) -> None:
        """As `ready`, looking again until some replica answers. Raises Error after `timeout` seconds."""
        until = time.monotonic() + timeout
        while True:
            try:
                return self.ready(max(0.0, until - time.monotonic()))
            except Error:
                if time.monotonic() + RETRY_S >= until:
                    raise
                time.sleep(RETRY_S)

    def close(self) -> None:
        self._is_over.set()
        with self._looking:  # a first look ends before
            if self._thread.is_alive():
                self._thread.join()
            if self._channel is not None:
                self._channel.close()

    def _require_open(self) -> None:
        if self._is_over.is_set():
            raise Error(grpc.StatusCode.CANCELLED, calls.CLOSED)

    def _look_first(self, timeout: float) -> None:
        seeds = resolved(self._seeds, all_of_each=True)
        self._ask(seeds)
        listed = self._list(timeout)
        self._follow(resolved(listed) if listed else seeds)

    def _keep_looking(self) -> None:
        """A list counts once two looks agree: replicas learn of a change one after the other."""
        while not self._is_over.wait(FOLLOW_S):
            with suppress(Error):  # the list stays as it was
                listed = self._look()
                if listed and listed == self._listed:
                    self._follow(resolved(listed))
                self._listed = listed

    def _look(self) -> tuple[str, ...]:
        """By those that are known; where none answers, by the seeds, which may be others by now."""
        try:
            return self._list(LOOK_TIMEOUT_S)
        except Error:
            self._ask(resolved(self._seeds, all_of_each=True))
            return self._list(LOOK_TIMEOUT_S)

    def _follow(self, replicas: Mapping[str, Address]) -> None:
        if self._rings.follow(replicas):
            self._ask(replicas)

    def _ask(self, replicas: Mapping[str, Address]) -> None:
        """Ask these for the list from now on."""
        if self._channel is not None:
            self._channel.close()
        self._channel = self._make(*over(replicas.values(), self._options))

    def _list(self, timeout: float) -> tuple[str, ...]:
        """host:port of all, by any of them. Raises Error."""
        assert self._channel is not None
        listing: grpc.UnaryUnaryMultiCallable[Any, replicas_pb2.ListReplicasResponse] = self._channel.unary_unary(
            **calls.REPLICAS_LIST.arguments()
        )
        try:
            reply = listing(replicas_pb2.ListReplicasRequest(), timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        return tuple(reply.addresses)


def too_late(timeout: float | None) -> Error:
    """Of a call that waited so long for the list."""
    return Error(grpc.StatusCode.DEADLINE_EXCEEDED, f"no list of replicas within {timeout:g} seconds")


def resolved(addresses: Sequence[str], *, all_of_each: bool = False) -> dict[str, Address]:
    """IP address and port by host:port, of one family, without those that no name service knows. Blocks.

    all_of_each   of a name with several addresses all of them, each under its own; else the first
    Raises Error where nothing is left.
    """
    found: dict[str, Address] = {}
    for address in addresses:
        try:
            host, port = _split(address)
            socks = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, ValueError) as error:
            log.warning("replica %s is left out: %s", address[:128], error)
            continue
        if all_of_each and len(set(socks)) > 1:
            found |= {f"[{sock}]:{port}" if ":" in sock else f"{sock}:{port}": (sock, port) for sock in socks}
        else:
            found[address] = socks[0], port
    if not found:
        raise Error(grpc.StatusCode.UNAVAILABLE, f"no address is known of {', '.join(addresses)[:256]}")
    version = ipaddress.ip_address(next(iter(found.values()))[0]).version  # gRPC takes a list of one family only
    same = {name: sock for name, sock in found.items() if ipaddress.ip_address(sock[0]).version == version}
    if len(same) < len(found):
        log.warning("replicas without an address of IPv%d are left out: %s", version, found.keys() - same.keys())
    return same


def _split(address: str) -> Address:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address[:128]!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
