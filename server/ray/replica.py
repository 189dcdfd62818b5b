"""What Serve runs: a complete server as a child, and a thread that says that it lives and knows the others."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray import serve

from server.config import FILE
from server.ray.child import Child, Health, advertised, stop_s
from server.ray.disk import claimed
from server.ray.members import BEAT_S, Membership
from server.ray.plan import Plan
from server.ray.scaling import load_between

log = logging.getLogger("ray.serve")


class Replica:
    """Serve makes it, asks for its health, and calls `__del__` when it is to go; no request passes through it.

    Raises RuntimeError if the server does not come up: Serve tries again, and tells of it.
    """

    def __init__(self, plan: Plan) -> None:
        self._over = threading.Event()
        config = plan.config()
        self._members = Membership(serve.get_replica_context().app_name)
        self._members.start()  # it knows the others by the time that the server is up
        self._folder = tempfile.TemporaryDirectory(prefix="adapterd-replica-")
        self._list = Path(self._folder.name) / "replicas"
        node = advertised(config.api.host, ray.util.get_node_ip_address())
        settings = plan.child_settings() | {"api.advertise": node, "api.replicas": f"{FILE}{self._list}"}
        held: Sequence[int] = ()
        if config.cache.disk_path:
            folder, descriptor = claimed(Path(config.cache.disk_path))
            settings["cache.disk_path"], held = str(folder), (descriptor,)
            config = replace(config, cache=replace(config.cache, disk_path=str(folder)))
        self._list.write_text("", encoding="utf-8")
        self._child = Child(config, settings, held)
        for descriptor in held:
            os.close(descriptor)  # the child's alone from now on: it may outlive this process
        self._stop_s = stop_s(config)
        self.address = f"{node}:{self._child.port}"
        self._known: Collection[str] = ()
        self._looked: tuple[float, dict[str, float]] | None = None
        self._beats = threading.Thread(target=self._keep_telling, name="adapterd members", daemon=True)
        self._beats.start()

    def check_health(self) -> None:
        """Raises RuntimeError if the server does not serve."""
        if self._over.is_set():
            return
        health = self._child.health()
        if health is not Health.SERVING:
            raise RuntimeError(f"the server of {self.address}, process {self._child.pid}, is {health.value}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Since the last time; see `load_between`. Raises OSError if the server does not tell."""
        now, series = time.monotonic(), self._child.metrics()
        before, self._looked = self._looked, (now, series)
        if before is None:
            return load_between(series, series, 1.0)
        return load_between(before[1], series, now - before[0])

    def __del__(self) -> None:
        """Leave the list, then have the server answer what it accepted."""
        if self._over.is_set() or not hasattr(self, "_beats"):
            return
        self._over.set()
        stopping = threading.Thread(target=self._child.stop, args=(self._stop_s,))
        stopping.start()
        self._beats.join()
        self._members.leave(self.address)
        stopping.join()
        self._folder.cleanup()

    def _keep_telling(self) -> None:
        while not self._over.is_set():
            if self._child.health(BEAT_S) is Health.GONE:  # silent is busy, or Serve finds out
                self._members.leave(self.address)
            else:
                self._note(self._members.beat(self.address, self._known))
            self._over.wait(BEAT_S)

    def _note(self, addresses: Collection[str]) -> None:
        """For the server, which reads it again; none leaves it as it was."""
        if not addresses:
            return
        new = self._list.with_suffix(".new")
        try:
            new.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
            new.replace(self._list)
            self._known = tuple(addresses)
        except OSError as error:
            log.warning("the list of replicas is as it was: %s", error)
