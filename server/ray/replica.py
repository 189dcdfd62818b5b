"""What Serve runs: a complete server as a child, and a thread that says that it lives and knows the others."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve

from server.config import is_loopback
from server.ray import targets
from server.ray.beats import Beats
from server.ray.child import Child, Health, advertised, stop_s
from server.ray.disk import claimed
from server.ray.members import Membership
from server.ray.plan import Plan
from server.ray.scaling import load_between
from server.top.scrape import Scrape

ELSEWHERE = ("192.0.2.1", 9)  # of no network that there is; nothing is sent


class Replica:
    """Serve makes it, asks for its health, and calls `__del__` when it is to go; no request passes through it.

    Raises RuntimeError if the server does not come up: Serve tries again, and tells of it.
    """

    def __init__(self, plan: Plan) -> None:
        self._is_over = False
        config = plan.config()
        members = Membership(serve.get_replica_context().app_name)
        members.start()  # it knows the others by the time that the server is up
        node = node_address()
        host = advertised(config.api.host, node)
        settings = plan.child_settings() | {"api.advertise": host}
        held: Sequence[int] = ()
        if config.cache.disk_path:
            folder, descriptor = claimed(Path(config.cache.disk_path))
            settings["cache.disk_path"], held = str(folder), (descriptor,)
            config = replace(config, cache=replace(config.cache, disk_path=str(folder)))
        self._child = Child(config, settings, held)
        for descriptor in held:
            os.close(descriptor)  # the child's alone from now on: it may outlive this process
        self._stop_s = stop_s(config)
        self.address = f"{host}:{self._child.port}"
        self._health = Health.SERVING  # when it was last asked
        self._looked: Scrape | None = None
        self._targets = Path(plan.scrape_targets) if plan.scrape_targets else None
        http = f"{advertised(config.api.http_host, node)}:{self._child.http_port}"
        self._beats = Beats(members, self.address, http, self._takes_calls, self._tell)

    def check_health(self) -> None:
        """Raises RuntimeError if the server does not serve."""
        if self._is_over:
            return
        self._health = self._child.health()
        if self._health is not Health.SERVING:
            raise RuntimeError(f"the server of {self.address}, process {self._child.pid}, is {self._health.value}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Since the last time; see `load_between`. Raises NoAnswer if the server does not tell."""
        now = self._child.metrics()
        before, self._looked = self._looked, now
        return load_between(before or now, now)

    def __del__(self) -> None:
        """Leave the list, then have the server answer what it accepted."""
        if self._is_over or not hasattr(self, "_beats"):
            return
        self._is_over = True
        stopping = threading.Thread(target=self._child.stop, args=(self._stop_s,))
        stopping.start()
        self._beats.stop()
        stopping.join()

    def _tell(self, replicas: Mapping[str, str]) -> None:
        """Raises OSError."""
        self._child.tell(replicas)
        if self._targets:
            targets.write(self._targets, [http for http in replicas.values() if http])

    def _takes_calls(self) -> bool:
        """Silent is busy, or Serve finds out."""
        return self._child.exit_code is None and self._health is not Health.GONE


def node_address() -> str:
    """Where other machines reach this one, also where its Ray keeps to itself."""
    address: str = ray.util.get_node_ip_address()
    if is_loopback(address):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(ELSEWHERE)
            address = sock.getsockname()[0]
    return address
