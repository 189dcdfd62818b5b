"""A complete `adapterd serve` as a child process, which ends with the process that started it."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from adapterd import Client, Error
from server.config import FILE, ServerConfig, is_loopback
from server.doctor.remote import is_secure
from server.ray.plan import assignments
from server.top.scrape import Scrape, parsed

HEALTH_S = 5.0  # for an answer; a busy machine is no sick one
LOOK_S = 0.05  # while it starts
START_S = 600.0  # the base may have to be downloaded
BEFORE_IT_SERVED = "before it served:"  # and what is known of why
LAST_LINES = 20  # of its log, for the error when it does not serve
STOP_MARGIN_S = 5.0  # beyond the drain
WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "[::1]"}  # how this machine reaches what listens everywhere


TLS_REMEDY = "where Ray starts, ADAPTERD_CA has to name the PEM file of its authority"


class Health(Enum):
    SERVING = "serving"
    SILENT = "silent"  # it listens, and does not answer in time
    GONE = "gone"  # it takes no calls: ended, not up yet, or draining


class Child:
    """The constructor returns when it serves. Threads may share it.

    config    what `settings` come to
    settings  "section.key": value, of all that is not as by default
    held      descriptors that are the child's too, and stay open until it has ended
    start_s   until it has to serve

    Raises RuntimeError with the last lines of its log if it ends before or takes longer, and at once where it does not
    let this process in; OSError for what ADAPTERD_CA and its like name and cannot be read.
    """

    def __init__(
        self, config: ServerConfig, settings: Mapping[str, Any], held: Sequence[int] = (), start_s: float = START_S
    ) -> None:
        self._api = config.api
        self._host = WILDCARDS.get(config.api.host, config.api.host)
        self._said = ""  # why it was not healthy when it was last asked
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self.port, self.http_port = _free_ports(config.api.host)
        self._folder = Path(tempfile.mkdtemp(prefix="adapterd-replica-"))  # removed by whoever ends last
        self._list = self._folder / "replicas"
        self._list.touch()
        own = {"api.port": self.port, "api.http_port": self.http_port, "api.replicas": f"{FILE}{self._list}"}
        command = [sys.executable, "-m", "server.ray.guard", f"{stop_s(config):g}", str(self._folder), "serve"]
        self._process = subprocess.Popen(
            [*command, *assignments({**settings, **own})],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=held,
            env=os.environ | {"PYTHONPATH": _with_ourselves(os.environ.get("PYTHONPATH", ""))},
            start_new_session=True,  # what ends the worker's group is not to end calls under way
        )
        self._log = threading.Thread(target=self._pass_on_log, daemon=True)
        self._log.start()
        try:
            self._wait_ready(start_s)
        except BaseException:
            self.stop(0)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def health(self, limit_s: float = HEALTH_S) -> Health:
        """What it says of itself, within `limit_s` or not."""
        if self._process.poll() is not None:
            return Health.GONE
        try:
            self._connect(limit_s).close()
            # A connection for each: one that was refused waits for long until it tries again.
            with Client(f"{self._host}:{self.port}", max_retries=0) as client:
                client.wait_ready(limit_s)
        except (Error, ConnectionError, TimeoutError) as error:
            self._said = str(error)
            is_late = isinstance(error, TimeoutError) or (
                isinstance(error, Error) and error.code.name == "DEADLINE_EXCEEDED"
            )
            return Health.SILENT if is_late else Health.GONE
        return Health.SERVING

    def tell(self, addresses: Collection[str]) -> None:
        """Have it know these replicas. Raises OSError."""
        new = self._list.with_suffix(".new")
        new.write_text("".join(f"{address}\n" for address in addresses), encoding="utf-8")
        new.replace(self._list)

    def stop(self, limit_s: float) -> None:
        """Have it answer what it accepted, and end. Blocks until it has, or `limit_s` are over."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.join()
        for pipe in (self._process.stdin, self._process.stderr):
            assert pipe is not None
            pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def metrics(self) -> Scrape:
        """Raises OSError if it does not tell, NoAnswer if what it tells are none."""
        scheme = "https" if self._api.tls_certificate else "http"
        host = WILDCARDS.get(self._api.http_host, self._api.http_host)
        token = os.environ.get("ADAPTERD_TOKEN", "")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        request = Request(f"{scheme}://{host}:{self.http_port}/metrics", headers=headers)
        with urlopen(request, timeout=HEALTH_S, context=_tls_context() if scheme == "https" else None) as reply:
            return parsed(reply.read().decode(), time.monotonic(), request.full_url)

    def _wait_ready(self, start_s: float) -> None:
        until = time.monotonic() + start_s
        while True:
            refusal = self._refusal()
            if not refusal and self.health() is Health.SERVING:
                return
            if self._process.poll() is not None:
                self._log.join()
                raise self._failure(f"ended with code {self.exit_code}")
            if refusal:
                raise self._failure("does not let its own worker in", f"{refusal}\n")
            if time.monotonic() > until:
                raise self._failure(f"took longer than {start_s:g} s", f"{self._said}\n")
            time.sleep(LOOK_S)

    def _failure(self, what: str, why: str = "") -> RuntimeError:
        return RuntimeError(f"the server {what} {BEFORE_IT_SERVED}\n{why}" + "".join(self._lines))

    def _refusal(self) -> str:
        """Why TLS keeps this process out, which no waiting changes; empty where it does not, or nobody listens yet."""
        if not self._api.tls_certificate:
            return ""
        try:
            with self._connect(HEALTH_S) as sock:
                if not is_secure():
                    return f"it speaks TLS, and ADAPTERD_CA is not set; {TLS_REMEDY}"
                host = self._host.strip("[]")
                with _tls_context(check_hostname=True).wrap_socket(sock, server_hostname=host) as secured:
                    secured.recv(1)  # a certificate that it misses is told after the handshake
        except ssl.SSLError as error:
            return f"{error}; {TLS_REMEDY}, and its certificate has to name {self._host}"
        except (ConnectionError, TimeoutError):
            return ""
        return ""

    def _connect(self, limit_s: float) -> socket.socket:
        """Raises OSError."""
        return socket.create_connection((self._host.strip("[]"), self.port), limit_s)

    def _pass_on_log(self) -> None:
        """To the worker's own stderr, which Ray keeps and shows."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="replace")
            self._lines.append(text)
            sys.stderr.write(text)


def stop_s(config: ServerConfig) -> float:
    """How long a stop may take: then it is ended."""
    return config.api.lame_duck_s + config.api.drain_timeout_s + STOP_MARGIN_S


def advertised(host: str, node: str) -> str:
    """Where callers reach a server that listens on `host` of a node of this address."""
    return node if host in WILDCARDS and not is_loopback(host) else host


def _free_ports(host: str) -> tuple[int, int]:
    """Two that nobody has now. Who takes one before the child does makes it end, and Serve tries again."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as one, socket.socket(family) as other:
        for sock in (one, other):
            sock.bind((host.strip("[]"), 0))
        return one.getsockname()[1], other.getsockname()[1]


def _with_ourselves(python_path: str) -> str:
    """The child runs the code that this process runs, from wherever Ray brought it."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), python_path)))


def _tls_context(check_hostname: bool = False) -> ssl.SSLContext:
    """As the clients': the files that ADAPTERD_CA, ADAPTERD_CERTIFICATE and ADAPTERD_KEY name."""
    context = ssl.create_default_context(cafile=os.environ.get("ADAPTERD_CA"))
    context.check_hostname = check_hostname
    context.set_alpn_protocols(["h2"] if check_hostname else ["http/1.1"])
    if certificate := os.environ.get("ADAPTERD_CERTIFICATE"):
        context.load_cert_chain(certificate, os.environ.get("ADAPTERD_KEY"))
    return context
