"""Stage 1: say at the door, at once, whether a request may come in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

from server.config import ApiConfig
from server.core import BaseInfo, Input, Parameters, Request, Tenant, TextInput
from server.errors import DeadlineExceeded, InvalidInput, Overloaded, Unavailable
from server.ledger import Held, Ledger
from server.metrics import Metrics
from server.tenants import Tenants

MIN_RETRY_AFTER_S = 0.1  # what a refused caller is told at least; a queue at its limit drains about this fast
CHARS_PER_TOKEN = 4  # of a text that nobody has tokenized yet
SPECIAL_TOKENS = 2
OVERLOAD_S = 5.0  # without a refusal, until an overload is over: by chance none may come for some batches
BURST_S = 1.0  # of its rate, that a tenant may use at once
# How much more than what is free one of several tenants may hold (Choudhury and Hahne 1998, IEEE/ACM ToN 6(2), dynamic
# thresholds): one alone gets four fifths of a limit, and whoever comes next finds room.
FREE_SHARE = 4


class Place:
    """What one request holds inside."""

    __slots__ = ("_ledger", "_num_tokens", "_tenant", "num_bytes")

    def __init__(self, ledger: Ledger, tenant: int, num_tokens: int, num_bytes: int) -> None:
        self._ledger, self._tenant, self._num_tokens, self.num_bytes = ledger, tenant, num_tokens, num_bytes
        ledger.enter(tenant, num_tokens, num_bytes)

    def correct(self, num_tokens: int) -> None:
        """The tokenizer has counted."""
        self._ledger.correct(self._tenant, num_tokens - self._num_tokens)
        self._num_tokens = num_tokens

    def leave(self) -> None:
        self._ledger.leave(self._tenant, self._num_tokens, self.num_bytes)


@dataclass(slots=True)
class _Bucket:
    """What a tenant may still spend of a rate (a token bucket), seen from a counter that every front adds to.

    A full one is enough for any request, so that none is too large to ever come in; the next one waits the longer.
    """

    rate: float
    left: float
    at: float
    counted: int

    def missing_s(self, cost: int, counted: int, now: float) -> float:
        """Seconds until there is so much to spend again; 0 if there is."""
        rate = self.rate
        self.left = min(rate * BURST_S, self.left + (now - self.at) * rate - (counted - self.counted))
        self.at, self.counted = now, counted
        return max(0.0, min(cost, rate * BURST_S) - self.left) / rate


class Admission:
    """Counts what is inside and refuses what is beyond a limit: of the server, of a tenant, or of its time.

    All methods belong to the event loop's thread.

    ledger   where all front processes count
    """

    def __init__(
        self, config: ApiConfig, metrics: Metrics, base: BaseInfo, tenants: Tenants, ledger: Ledger | None = None
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._base = base
        self._tenants = tenants
        self._ledger = ledger or Ledger.local()
        self._limits = Held(config.max_in_flight, config.max_in_flight_tokens, config.max_in_flight_bytes)
        self._buckets: dict[tuple[int, str], _Bucket] = {}
        self._generation = 0  # of the tenants that have buckets
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._fill_buckets()

    @property
    def num_in_flight(self) -> int:
        return self._ledger.own_requests

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @asynccontextmanager
    async def enter(self, request: Request) -> AsyncIterator[Place]:
        """Hold a place for `request` while the body runs.

        Raises InvalidInput, Unavailable while draining, Overloaded at a limit, DeadlineExceeded if it came too late.
        """
        self._check(request)
        num_tokens = _estimate(request.inputs, self._base.max_tokens)
        try:
            self._check_room(request, num_tokens)
        except Overloaded:
            self._metrics.tenant_refused(request.tenant.name)
            raise
        place = Place(self._ledger, request.tenant.index, num_tokens, request.size_bytes)
        self._note()
        try:
            yield place
        finally:
            place.leave()
            self._note()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse newcomers from now on; True once nobody is inside, False if that took longer than `timeout_s`."""
        self.close()
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Refuse newcomers from now on."""
        self._is_draining = True

    def _check(self, request: Request) -> None:
        if self._is_draining:
            raise Unavailable("the server is draining; send the request to another one")
        if not request.inputs:
            raise InvalidInput("the request has 0 inputs; send at least 1")
        _check_parameters(request.parameters)
        late_s = time.monotonic() - request.deadline if request.deadline is not None else -1.0
        if late_s >= 0:
            self._metrics.expired("admit")
            raise DeadlineExceeded(f"the deadline passed {late_s:.3f} s before the request came in")

    def _check_room(self, request: Request, num_tokens: int) -> None:
        """Raises Overloaded."""
        tenant = request.tenant
        total, own = self._ledger.held(), self._ledger.held(tenant.index)
        self._check_limits(total, own, Held(1, num_tokens, request.size_bytes))
        self._check_queue(tenant, total, own, num_tokens, request.deadline)
        if tenant.max_in_flight and own.requests >= tenant.max_in_flight:
            self._refuse(
                "tenant",
                f"{own.requests} requests of tenant {tenant.name!r} are in flight, its limit is {tenant.max_in_flight}",
                limit=str(tenant.max_in_flight),
            )
        self._check_rates(tenant, num_tokens)

    def _check_limits(self, total: Held, own: Held, more: Held) -> None:
        is_shared = len(self._tenants.all) > 1
        for kind in ("requests", "tokens", "num_bytes"):
            limit, inside, held = getattr(self._limits, kind), getattr(total, kind), getattr(own, kind)
            what, name = kind.removeprefix("num_"), _SETTINGS[kind]
            if inside and inside + getattr(more, kind) > limit:
                self._refuse(what, f"{inside} {what} are in flight, the limit is {limit} ({name})", limit=str(limit))
            if is_shared and held and held > FREE_SHARE * (limit - inside):
                self._refuse(
                    what,
                    f"{held} {what} of this tenant are in flight, and the rest of {limit} ({name}) is left to others",
                    limit=str(limit),
                )

    def _check_queue(self, tenant: Tenant, total: Held, own: Held, more: int, deadline: float | None) -> None:
        """Work that waits: no longer than `max_queue_s` and the deadline; in an overload, what keeps a device busy.

        How long is told by what the tenant has inside and its share of the device, so a crowd waits for itself, and an
        overload is one tenant's.
        """
        pace = self._ledger.pace
        if not pace.tokens_per_s or not own.tokens:
            return
        ahead = min(total.tokens, own.tokens * max(pace.weights, tenant.weight) / tenant.weight)
        wait_s = ahead / pace.tokens_per_s
        is_overloaded = self._ledger.since_refused_s(tenant.index) < OVERLOAD_S
        if wait_s + more / pace.tokens_per_s > self._config.max_queue_s:
            self._ledger.refused(tenant.index)
            self._refuse(
                "queue", f"work of {wait_s:.3f} s is waiting, the limit is {self._config.max_queue_s:g} s (max_queue_s)"
            )
        if is_overloaded and own.tokens + more > pace.busy_tokens:
            self._ledger.refused(tenant.index)
            self._refuse(
                "queue",
                f"in an overload {own.tokens} tokens of this tenant are inside, the limit is {pace.busy_tokens}",
            )
        left_s = deadline - time.monotonic() if deadline is not None else wait_s
        if wait_s > left_s:
            self._refuse(
                "deadline", f"work of {wait_s:.3f} s is waiting and the deadline is in {left_s:.3f} s; allow more time"
            )

    def _check_rates(self, tenant: Tenant, num_tokens: int) -> None:
        if not (tenant.max_requests_per_s or tenant.max_tokens_per_s):
            return
        if self._generation != self._tenants.generation:
            self._fill_buckets()
        now, counts = time.monotonic(), self._ledger.admitted(tenant.index)
        for (kind, rate), cost, counted in zip(_rates(tenant), (1, num_tokens), counts, strict=True):
            bucket = self._buckets.get((tenant.index, kind))
            if rate and bucket is not None and (missing_s := bucket.missing_s(cost, counted, now)):
                self._refuse(
                    "rate",
                    f"tenant {tenant.name!r} has used up its max_{kind}_per_s {rate:g}",
                    after_s=missing_s,
                    limit=f"{rate:g}",
                )

    def _fill_buckets(self) -> None:
        """Of tenants and rates that are new here; before anything of it is spent, for other fronts count too."""
        self._generation = self._tenants.generation
        for tenant in self._tenants.all:
            for (kind, rate), counted in zip(_rates(tenant), self._ledger.admitted(tenant.index), strict=True):
                known = self._buckets.get((tenant.index, kind))
                if known is None or known.rate != rate:
                    fresh = _Bucket(rate, rate * BURST_S, time.monotonic(), counted)
                    self._buckets[tenant.index, kind] = fresh

    def _refuse(self, reason: str, message: str, *, after_s: float = 0.0, limit: str = "") -> NoReturn:
        self._metrics.refused(reason)
        retry_after_s = max(MIN_RETRY_AFTER_S, after_s)
        metadata = {"limit": limit} if limit else {}
        raise Overloaded(f"{message}; try again in {retry_after_s:.3g} s", retry_after_s=retry_after_s, **metadata)

    def _note(self) -> None:
        """Somebody came in, or left."""
        self._metrics.in_flight(self.num_in_flight)
        if self.num_in_flight:
            self._is_empty.clear()
        else:
            self._is_empty.set()


_SETTINGS = {"requests": "max_in_flight", "tokens": "max_in_flight_tokens", "num_bytes": "max_in_flight_bytes"}


def _rates(tenant: Tenant) -> tuple[tuple[str, float], ...]:
    return ("requests", tenant.max_requests_per_s), ("tokens", tenant.max_tokens_per_s)


def _estimate(inputs: Sequence[Input], max_tokens: int) -> int:
    """Tokens of inputs that are not tokenized yet: of texts a guess, which is put right when they are."""
    return sum(min(max_tokens, num_tokens) for source in inputs for num_tokens in _lengths(source))


def _lengths(source: Input) -> Sequence[int]:
    if not isinstance(source, TextInput):
        return (len(source.input_ids),)
    seconds = source.choices or (source.text_pair or "",)
    return [(len(source.text) + len(second)) // CHARS_PER_TOKEN + SPECIAL_TOKENS for second in seconds]


def _check_parameters(parameters: Parameters) -> None:
    if parameters.top_k is not None and parameters.top_k < 1:
        raise InvalidInput(f"top_k {parameters.top_k} must be at least 1; leave it out for the default")
    if parameters.threshold is not None and not 0 <= parameters.threshold <= 1:
        raise InvalidInput(f"threshold {parameters.threshold} must lie in [0, 1]")
