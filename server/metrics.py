"""Every Prometheus series of the server: name, unit, buckets.

No label holds what a caller chooses, so the number of series is bounded: tenants are those of the operator's file, and
adapters are named while several versions share their requests, and where they are among the busiest (see
`server.usage`).
The recording methods may be called from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Summary,
    disable_created_metrics,
    generate_latest,
)

from server.core import Tier, Timings
from server.usage import UsageBook

disable_created_metrics()  # type: ignore[no-untyped-call] # a series more for each, which nothing reads

STAGES = ("admit", "tokenize", "ready", "queue", "compute", "total")

LATENCY_BUCKETS_S = tuple(0.00025 * 2**i for i in range(16))  # 0.25 ms .. 8.192 s
LOAD_BUCKETS_S = tuple(0.001 * 2**i for i in range(17))  # 1 ms .. 66 s
AGE_BUCKETS_S = tuple(0.25 * 4**i for i in range(10))  # 0.25 s .. 18 h
SAMPLE_BUCKETS = tuple(2**i for i in range(11))  # 1 .. 1024
TOKEN_BUCKETS = tuple(2**i for i in range(4, 17))  # 16 .. 65536
DIGEST_CHARS = 12
REFUSALS = ("requests", "tokens", "bytes", "tenant", "rate", "queue", "deadline")
RELOADED = ("tenants", "certificates")
ADAPTER_BUCKETS = (0, *SAMPLE_BUCKETS)  # 0: the base alone


class Metrics:
    """The series and one small method per event. Every instance has its own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.usage = UsageBook()
        self.registry.register(self.usage)
        self._define_requests()
        self._define_batches()
        self._define_tiers()

    def render(self) -> bytes:
        """All series in the Prometheus text format."""
        return generate_latest(self.registry)

    def watch_heap(self, measure: Callable[[], tuple[int, int]]) -> None:
        """Show what `measure` says at each scrape: bytes in use, and free but kept."""
        self._heap.labels("used").set_function(lambda: measure()[0])
        self._heap.labels("free").set_function(lambda: measure()[1])

    def build(self, **facts: str) -> None:
        """What runs here (version, base, device, ...), shown as labels of `adapterd_build_info`."""
        self._build.info(facts)

    # requests

    def request_done(self, method: str, outcome: str, timings: Timings, total_s: float, trace_id: str = "") -> None:
        """A call was answered; `outcome` is the name of its status code.

        trace_id   where the request was traced: an exemplar of its latency

        Stages it never reached are 0 and left out.
        """
        child = self._requests.get((method, outcome))
        if child is None:
            child = self._requests_total.labels(method, outcome)
            self._requests[method, outcome] = child
        child.inc()
        durations = (timings.admit_s, timings.tokenize_s, timings.ready_s, timings.queue_s, timings.compute_s)
        *stages, total = self._durations
        for observer, seconds in zip(stages, durations, strict=True):
            if seconds > 0:
                observer.observe(seconds)
        total.observe(total_s, {"trace_id": trace_id} if trace_id else None)

    def in_flight(self, num_requests: int) -> None:
        self._in_flight.set(num_requests)

    def expired(self, stage: str) -> None:
        """One piece of work ran out of time in `stage` and never reached the device."""
        self._expired[stage].inc()

    def cancelled(self) -> None:
        """One piece of work was dropped before the device because its caller had left."""
        self._cancelled.inc()

    def refused(self, reason: str) -> None:
        """A request was turned away at the door: which limit it met."""
        self._refused[reason].inc()

    def tenant_done(self, tenant: str, num_tokens: int) -> None:
        """A request of a tenant was answered."""
        self._tenant_requests.labels(tenant, "answered").inc()
        self._tenant_tokens.labels(tenant).inc(num_tokens)

    def tenant_refused(self, tenant: str) -> None:
        self._tenant_requests.labels(tenant, "refused").inc()

    def tenant_failed(self, tenant: str) -> None:
        self._tenant_requests.labels(tenant, "failed").inc()

    def tenants_now(self, names: Collection[str]) -> None:
        """Series of tenants that left go."""
        for series in (self._tenant_requests, self._tenant_tokens):
            for labels in list(series._metrics):
                if labels[0] not in names:
                    with suppress(KeyError):
                        series.remove(*labels)

    def adapter_gone(self, adapter: str) -> None:
        """It was unloaded, or there is no such adapter any more."""
        self.usage.forget(adapter)

    def unauthenticated(self) -> None:
        """A call came without credentials that are known."""
        self._unauthenticated.inc()

    def reloaded(self, what: str, *, has_failed: bool) -> None:
        """The tenants file or the certificates were read again; where that failed, those before stay."""
        self._reload_failed[what].set(has_failed)
        if not has_failed:
            self._reloads[what].inc()

    def front_restarted(self) -> None:
        """A front process ended by itself and another one takes its place."""
        self._front_restarts.inc()

    def refusal_took(self, seconds: float) -> None:
        """From a call's arrival to the answer that it was refused for lack of room."""
        self._refusal_s.observe(seconds)

    # batches

    def batch_split(self) -> None:
        """A batch failed as a whole and is run again in halves."""
        self._splits.inc()

    def canary_done(self, outcome: str) -> None:
        """A served sample was computed again, alone: "same", "different" or "failed"."""
        self._canaries[outcome].inc()

    def device_fault(self, count: int = 1) -> None:
        """The device answers nothing any more; or did not, so many times, in processes that this one follows."""
        self._faults.inc(count)

    def serving(self, is_serving: bool) -> None:
        """What health checks are told."""
        self._serving.set(is_serving)

    def batch_done(self, num_samples: int, num_tokens: int, num_adapters: int, compute_s: float) -> None:
        self._batch_samples.observe(num_samples)
        self._batch_tokens.observe(num_tokens)
        self._batch_adapters.observe(num_adapters)
        self._compute_s.inc(compute_s)

    def batch_budget(self, num_tokens: int) -> None:
        """The most tokens that a batch takes."""
        self._batch_budget.set(num_tokens)

    def queue_depth(self, samples: int, tokens: int) -> None:
        self._queue_samples.set(samples)
        self._queue_tokens.set(tokens)

    # tiers

    def cache_hit(self, tier: Tier) -> None:
        self._hits[tier].inc()

    def cache_miss(self, tier: Tier) -> None:
        self._misses[tier].inc()

    def load_done(self, tier: Tier, seconds: float, outcome: str) -> None:
        """An adapter was brought into `tier`, or not; `outcome` is "ok" or the `reason` of the error."""
        self._loads_total.labels(tier.value, outcome).inc()
        self._load_s[tier].observe(seconds)

    def eviction(self, tier: Tier, age_s: float) -> None:
        """An adapter left `tier`, `age_s` after it was last used."""
        self._evictions[tier].inc()
        self._eviction_age_s[tier].observe(age_s)

    def tier_bytes(self, tier: Tier, used: int) -> None:
        self._tier_bytes[tier].set(used)

    def tier_budget(self, tier: Tier, budget: int) -> None:
        self._tier_budget[tier].set(budget)

    def tier_adapters(self, tier: Tier, count: int) -> None:
        self._tier_adapters[tier].set(count)

    def version_done(self, adapter: str, digest: str, seconds: float, *, has_failed: bool) -> None:
        """A request was answered, or not, by one of several versions of an adapter."""
        labels = adapter, digest[:DIGEST_CHARS]
        with self._versions_lock:
            if adapter not in self._versions:
                return  # one answers alone again
            self._versions[adapter].add(labels[1])
            self._version_s.labels(*labels).observe(seconds)
            if has_failed:
                self._version_failures.labels(*labels).inc()

    def versions_begun(self, adapter: str) -> None:
        """Several versions answer from now on."""
        with self._versions_lock:
            self._versions.setdefault(adapter, set())

    def versions_gone(self, adapter: str) -> None:
        """One version answers alone again: the series of all go."""
        with self._versions_lock:
            for digest in self._versions.pop(adapter, ()):
                for series in (self._version_s, self._version_failures):
                    with suppress(KeyError):
                        series.remove(adapter, digest)

    def order_done(self, outcome: str) -> None:
        """An order to all replicas was "written" here, another's was "followed", or could not be: "failed"."""
        self._orders[outcome].inc()

    def slots(self, leased: int, idle: int) -> None:
        """Device slots that hold an adapter: those a batch is using, and those that could be evicted."""
        self._slots_leased.set(leased)
        self._slots_idle.set(idle)

    # definitions

    def _define_requests(self) -> None:
        self._build = Info("adapterd_build", "What runs here.", registry=self.registry)
        self._serving = self._gauge("serving", "Whether health checks are told that the server serves.")
        self._heap = self._gauge("heap_bytes", "Of the C library's heap; what is free is kept.", ("state",))
        self._requests_total = self._counter("requests", "Calls answered, by status code.", ("method", "outcome"))
        self._requests: dict[tuple[str, str], Counter] = {}
        durations = self._histogram("request_duration_seconds", "Time in each stage.", LATENCY_BUCKETS_S, ("stage",))
        self._durations = tuple(durations.labels(stage) for stage in STAGES)
        self._in_flight = self._gauge("in_flight_requests", "Requests admitted and not yet answered.")
        expired = self._counter("expired", "Work dropped before the device: out of time.", ("stage",))
        self._expired = {stage: expired.labels(stage) for stage in STAGES[:-2]}
        self._cancelled = self._counter("cancelled", "Work dropped before the device: its caller left.")
        refused = self._counter("refused", "Requests turned away for lack of room, by the limit they met.", ("reason",))
        self._refused = {reason: refused.labels(reason) for reason in REFUSALS}
        self._refusal_s = self._histogram("refusal_duration_seconds", "Time until a refusal.", LATENCY_BUCKETS_S)
        self._tenant_requests = self._counter("tenant_requests", "Requests by tenant.", ("tenant", "outcome"))
        self._tenant_tokens = self._counter("tenant_tokens", "Tokens answered by tenant.", ("tenant",))
        self._unauthenticated = self._counter("unauthenticated", "Calls without credentials that are known.")
        failed = self._gauge("reload_failed", "Whether what was read last is broken; that before stays.", ("what",))
        reloads = self._counter("reloads", "Files that changed and were read again.", ("what",))
        self._reload_failed = {what: failed.labels(what) for what in RELOADED}
        self._reloads = {what: reloads.labels(what) for what in RELOADED}
        self._front_restarts = self._counter("front_restarts", "Front processes that ended and were replaced.")

    def _define_batches(self) -> None:
        self._batch_samples = self._histogram("batch_samples", "Samples per forward pass.", SAMPLE_BUCKETS)
        self._batch_tokens = self._histogram("batch_tokens", "Tokens per forward pass.", TOKEN_BUCKETS)
        self._batch_adapters = self._histogram("batch_adapters", "Adapters per forward pass.", ADAPTER_BUCKETS)
        self._batch_budget = self._gauge("batch_budget_tokens", "Tokens that a forward pass may have.")
        self._splits = self._counter("batch_splits", "Batches that failed and were run again in halves.")
        canaries = self._counter("canaries", "Served samples that were computed again, alone.", ("outcome",))
        self._canaries = {outcome: canaries.labels(outcome) for outcome in ("same", "different", "failed")}
        self._faults = self._counter("device_faults", "Times the device stopped answering.")
        self._compute_s = self._counter("compute_seconds", "Time the device spent on batches.")
        self._queue_samples = self._gauge("queue_samples", "Samples waiting for a batch.")
        self._queue_tokens = self._gauge("queue_tokens", "Tokens waiting for a batch.")

    def _define_tiers(self) -> None:
        self._tier_bytes = self._gauge_of_tier("tier_bytes", "Bytes of adapters held.")
        self._tier_budget = self._gauge_of_tier("tier_budget_bytes", "Bytes of adapters that may be held.")
        self._tier_adapters = self._gauge_of_tier("tier_adapters", "Adapters held.")
        self._hits = self._counter_of_tier("hits", "Look-ups that found the adapter.")
        self._misses = self._counter_of_tier("misses", "Look-ups that did not find the adapter.")
        self._evictions = self._counter_of_tier("evictions", "Adapters dropped to make room.")
        self._loads_total = self._counter("loads", "Adapters brought in.", ("tier", "outcome"))
        self._load_s = self._histogram_of_tier("load_duration_seconds", "Time of a load.", LOAD_BUCKETS_S)
        self._eviction_age_s = self._histogram_of_tier(
            "eviction_age_seconds", "Time since last use of what was evicted.", AGE_BUCKETS_S
        )
        self._versions: dict[str, set[str]] = {}
        self._versions_lock = threading.Lock()
        version = ("adapter", "digest")
        self._version_s = Summary(
            "adapterd_version_request_duration_seconds",
            "Requests for an adapter of which several versions answer.",
            version,
            registry=self.registry,
        )
        self._version_failures = self._counter("version_failures", "Of those, the ones that failed.", version)
        orders = self._counter("orders", "Orders that move a name in all replicas.", ("outcome",))
        self._orders = {outcome: orders.labels(outcome) for outcome in ("written", "followed", "failed")}
        slots = self._gauge("slots", "Device slots that hold an adapter.", ("state",))
        self._slots_leased = slots.labels("leased")
        self._slots_idle = slots.labels("idle")

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(f"adapterd_{name}_total", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"adapterd_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(f"adapterd_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counter_of_tier(self, name: str, text: str) -> dict[Tier, Counter]:
        parent = self._counter(name, text, ("tier",))
        return {tier: parent.labels(tier.value) for tier in Tier}

    def _gauge_of_tier(self, name: str, text: str) -> dict[Tier, Gauge]:
        parent = self._gauge(name, text, ("tier",))
        return {tier: parent.labels(tier.value) for tier in Tier}

    def _histogram_of_tier(self, name: str, text: str, buckets: Sequence[float]) -> dict[Tier, Histogram]:
        parent = self._histogram(name, text, buckets, ("tier",))
        return {tier: parent.labels(tier.value) for tier in Tier}
