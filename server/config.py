"""Every knob of the server, with its unit in its name. Each comment says what raising it costs.

docs/reference/configuration.md is made of these comments: `make reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from server.errors import InvalidInput

MIB = 1 << 20
MAX_PORT = 65535
MAX_FRONTENDS = 256
MAX_MESSAGE_BYTES = (1 << 31) - 1  # what gRPC can be told
DNS, FILE = "dns:", "file:"  # where replicas are listed


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The resident base and how it computes."""

    base: str = "minilm"  # "minilm" (embedded), a directory, or a hub id
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1"
    dtype: str = "auto"  # float32, bfloat16, float16; "auto" is bfloat16 on GPUs and float32 on CPUs
    quantization: str = "none"  # "int8": the base's Linears in 8 bits, faster on CPUs, answers a little off
    num_threads: int = 0  # compute threads on a CPU; 0: all cores that the process may use, by affinity and cgroup
    backend: str = "auto"  # how adapters are computed: eager, triton, or reference to check against; auto by the device
    cuda_graphs: bool = True  # small batches are replayed from graphs, which hold memory and take a moment to capture

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InvalidInput(f"dtype {self.dtype!r} is not one of auto, float32, bfloat16, float16")
        if self.quantization not in ("none", "int8"):
            raise InvalidInput(f"quantization {self.quantization!r} is not one of none, int8")
        _require_text(self, "base", "device", "backend")
        _require_at_least(0, self, "num_threads")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Where adapters come from and how many bytes each tier may hold."""

    adapters: tuple[Path, ...] = ()  # folders whose sub-folders are adapters, named after them
    device_bytes: int = 256 * MIB  # of adapters on the device; more of them resident, less room for batches
    host_bytes: int = 2048 * MIB  # of adapters in host memory; more of them one copy away from the device
    disk_path: str = ""  # folder of the disk tier and the index, one server's own; "" has neither
    disk_bytes: int = 20480 * MIB  # of converted adapters; more of them start in milliseconds
    registries: tuple[str, ...] = ()  # further origins: a registry's folder or URL, "hub:organization"
    kept_versions: int = 2  # of each adapter, to go back to; disk
    prefetch: tuple[str, ...] = ()  # adapters that are loaded at start, "acme-*"
    reserve: tuple[str, ...] = ()  # "acme-*=67108864": host bytes that adapters of other names do not take
    watch_s: float = 5.0  # between looks at the origins for what is new, replaced or gone; 0 never looks
    idle_ttl_s: float = 0.0  # adapters that nobody asked for so long leave memory; 0 keeps them while there is room
    load_timeout_s: float = 30.0  # how long a caller waits for an origin before it gets an error
    max_concurrent_loads: int = 4  # more cold starts in parallel, more CPU taken from serving
    max_adapter_bytes: int = 512 * MIB  # largest checkpoint file that is read at all
    compositions: tuple[str, ...] = ()  # "name = Stack(de, ner)"; "name = Fuse(a, b) : head" has a head of its own
    # try what is loaded against a second, plain copy of the base: memory, slow cold starts
    verify_at_load: bool = False
    verify_tolerance: float = 0.0  # of |difference| / (1 + |plain|); 0: by the dtype, 0.001 in float32, 0.1 in others

    def __post_init__(self) -> None:
        _require_at_least(
            1, self, "device_bytes", "host_bytes", "disk_bytes", "max_concurrent_loads", "max_adapter_bytes"
        )
        _require_at_least(0, self, "kept_versions")
        _require_seconds(self, "load_timeout_s", "watch_s", "idle_ttl_s")
        if not 0 <= self.verify_tolerance < math.inf:
            raise InvalidInput(f"verify_tolerance {self.verify_tolerance:g} must be a number, 0 or more")
        if self.load_timeout_s == 0:
            raise InvalidInput("load_timeout_s 0 must be more than 0")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """What goes into one forward pass."""

    # larger batches use the device better and make each caller wait longer; 0: measured at start, where that stops
    max_batch_tokens: int = 0
    max_batch_samples: int = 512  # inputs of all requests in it
    batch_timeout_s: float = 60.0  # a device that computes one batch for so long hangs, and the server starts again
    canary_share: float = 0.001  # of samples, computed once more, alone and from weights placed anew, and compared
    canary_tolerance: float = 0.0  # of |difference| / (1 + |alone|); 0: by the dtype, as cache.verify_tolerance

    def __post_init__(self) -> None:
        _require_at_least(0, self, "max_batch_tokens")
        _require_at_least(1, self, "max_batch_samples")
        _require_seconds(self, "batch_timeout_s")
        for name, most in (("canary_share", 1.0), ("canary_tolerance", math.inf)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidInput(f"{name} {getattr(self, name):g} must be a number, 0 to {most:g}")
        if self.batch_timeout_s == 0:
            raise InvalidInput("batch_timeout_s 0 must be more than 0")


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Where the server listens, whom it lets in, and how much."""

    host: str = "127.0.0.1"  # of gRPC; elsewhere than on loopback it needs tenants or allow_anonymous
    port: int = 50051  # gRPC; 0 takes a free one
    http_host: str = "127.0.0.1"  # of the HTTP port: the API, metrics, the console
    http_port: int = 9090  # HTTP; 0 takes a free one
    tenants: str = ""  # file that declares who may call; "" lets anyone, on loopback
    allow_anonymous: bool = False  # listen elsewhere than on loopback without a tenants file: anyone there may do all
    tls_certificate: str = ""  # PEM file with the chain, for both ports; "" serves in the clear
    tls_key: str = ""  # PEM file with its key
    tls_client_ca: str = ""  # PEM file; callers then need a certificate that it has signed
    reload_s: float = 2.0  # between looks at the tenants file and the certificates
    audit_log: str = ""  # file of JSON lines: who changed what, and who was turned away; "" goes to the log
    max_message_bytes: int = 8 * MIB  # a caller may make the server hold this much per call
    max_inputs_per_request: int = 256  # each choice of a multiple-choice question is one
    max_requests_per_batch: int = 256  # of one PredictBatch
    max_in_flight: int = 1024  # accepted requests; beyond it callers are refused at once
    max_in_flight_tokens: int = 1 << 20  # of those, texts and all; memory and latency
    max_in_flight_bytes: int = 256 * MIB  # of those, as they came
    max_queue_s: float = 5.0  # of work that waits; beyond it, and in an overload beyond far less, callers are refused
    drain_timeout_s: float = 30.0  # how long a stop waits for accepted requests
    lame_duck_s: float = 0.5  # how long a stopping server still accepts, so that balancers see it leave
    num_tokenizer_threads: int = 2  # of each front
    publish_folder: str = ""  # where Publish keeps adapters, the first of cache.adapters; "" takes none
    max_publish_bytes: int = 512 * MIB  # of one adapter's files; disk
    trace: str = ""  # collector that takes OTLP over gRPC, "http://127.0.0.1:4317"; needs the extra "trace"
    trace_share: float = 0.01  # of requests whose caller does not say whether it traces them; time, and the collector's
    advertise: str = ""  # HOST or HOST:PORT where callers reach this replica; replies carry it
    replicas: str = ""  # where all replicas are listed: "dns:NAME:PORT", or "file:PATH", an address a line; "" is alone
    frontends: int = 0  # gRPC processes on the port, each with memory and a core of its own; 0: the engine's process

    def __post_init__(self) -> None:
        _require_text(self, "host", "http_host")
        if not 0 <= self.trace_share <= 1:
            raise InvalidInput(f"trace_share {self.trace_share:g} is not between 0 and 1")
        _require_at_least(0, self, "port", "http_port", "frontends")
        _require_at_most(MAX_PORT, self, "port", "http_port")
        _require_at_most(MAX_FRONTENDS, self, "frontends")
        _require_at_least(1, self, "max_publish_bytes")
        limits = ("max_message_bytes", "max_inputs_per_request", "max_requests_per_batch", "max_in_flight")
        _require_at_least(1, self, "max_in_flight_tokens", "max_in_flight_bytes")
        _require_at_least(1, self, *limits, "num_tokenizer_threads")
        _require_at_most(MAX_MESSAGE_BYTES, self, "max_message_bytes")
        _require_seconds(self, "drain_timeout_s", "lame_duck_s", "max_queue_s", "reload_s")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise InvalidInput("tls_certificate and tls_key come together; set both, or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise InvalidInput("tls_client_ca needs tls_certificate and tls_key")
        self._check_replicas()
        far = next((name for name in ("host", "http_host") if not is_loopback(getattr(self, name))), None)
        if far and not (self.tenants or self.allow_anonymous):
            raise InvalidInput(
                f"{far} {getattr(self, far)!r} is not loopback; without a tenants file anyone who reaches it may load,"
                " replace and unload adapters. Declare tenants (--tenants), or ask for it in words: --allow-anonymous"
            )

    def _check_replicas(self) -> None:
        if self.advertise:
            split_address(self.advertise)
        if self.replicas.startswith(DNS) and not split_address(self.replicas.removeprefix(DNS))[1]:
            raise InvalidInput(f"replicas {self.replicas!r} has no port; write {DNS}NAME:PORT")
        if self.replicas and not self.replicas.startswith((DNS, FILE)):
            raise InvalidInput(f"replicas {self.replicas!r} is neither {DNS}NAME:PORT nor {FILE}PATH")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    api: ApiConfig = field(default_factory=ApiConfig)

    def __post_init__(self) -> None:
        folder = self.api.publish_folder
        if folder and [Path(folder).absolute()] != [path.absolute() for path in self.cache.adapters[:1]]:
            raise InvalidInput(
                f"publish_folder {folder!r} is not the first of cache.adapters; name it there first: of two adapters"
                " with one name the first folder's counts"
            )


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port", "[::1]:50051" or "host", whose port is 0. Raises InvalidInput."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, "0"
    if not host or not port.isdecimal() or int(port) > MAX_PORT or (":" in host and not host.startswith("[")):
        raise InvalidInput(f"{address[:128]!r} is not HOST or HOST:PORT; an IPv6 address stands in brackets")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host's name or address."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _require_at_least(least: int, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise InvalidInput(f"{name} {getattr(config, name)} must be at least {least}")


def _require_at_most(most: int, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) > most:
            raise InvalidInput(f"{name} {getattr(config, name)} must be at most {most}")


def _require_seconds(config: object, *names: str) -> None:
    """0 or more, and neither endless nor NaN: the clock's timers take no such number."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise InvalidInput(f"{name} {getattr(config, name)} must be a finite number of seconds, 0 or more")


def _require_text(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name).strip():
            raise InvalidInput(f"{name} is empty; leave it out for its default")
