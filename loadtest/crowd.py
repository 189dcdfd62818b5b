"""A server whose device is one core of bert-base's shape, tenants that call it, and what each of them got.

What overload and fairness are about is who is computed, not how fast: with a slow device the callers and the refusals
fit beside it on two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from loadtest.arrivals import Catalog, Traffic, schedule
from loadtest.children import Served, served
from loadtest.client import Order, Outcomes
from loadtest.deployment import base_source, load_all, publish
from loadtest.generators import Generators
from loadtest.texts import load_tokenizer, make_texts
from server.config import ModelConfig
from server.model.base import load_base
from server.tenants import PREFIX, digest_of

NUM_ADAPTERS = 16
NUM_TEXTS = 256
TEXT_TOKENS = 32
TIMEOUT_S = 30.0
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@dataclass(frozen=True, slots=True)
class Crowd:
    """A server, and how to send to it."""

    server: Served
    names: tuple[str, ...]
    texts: tuple[str, ...]
    generators: Generators

    def fire(self, rates: Mapping[str, float], seconds: float, seed: int) -> Outcomes:
        """An open loop, so many requests a second of each tenant, each a call of its own."""
        total = sum(rates.values())
        traffics = [Traffic(tenant, share=rate / total, popularity="uniform") for tenant, rate in rates.items()]
        catalog = Catalog(len(self.names), 0, len(self.texts))
        return self.generators.fire(
            Order(
                server=self.server.address,
                names=self.names,
                texts=self.texts,
                schedule=schedule(traffics, total, seconds, catalog, seed),
                cold_from=len(self.names),
                timeout_s=TIMEOUT_S,
                rpc="unary",
                num_channels=2,
                tokens=tuple(map(token_of, rates)),
            )
        )


@contextmanager
def crowd(
    base_name: str, tenants: Mapping[str, float], num_threads: int = 1, settings: Sequence[str] = ()
) -> Iterator[Crowd]:
    """A server of its own with these tenants and weights; without any, of everybody."""
    with tempfile.TemporaryDirectory(prefix="loadtest-") as name, Generators(1) as generators:
        folder = Path(name)
        model = ModelConfig(base=base_source(base_name, folder), dtype="float32")
        base = load_base(model)
        if base.tokenizer_path is None:
            raise RuntimeError(f"base {base_name} has no tokenizer; callers send texts")
        texts = make_texts(load_tokenizer(base.tokenizer_path), [TEXT_TOKENS] * NUM_TEXTS, 0)
        names = tuple(path.name for path in publish(base, folder / "adapters", NUM_ADAPTERS))
        del base
        options = ["--base", model.base, "--adapters", str(folder / "adapters"), "--dtype", "float32"]
        options += ["--set", f"model.num_threads={num_threads}", "--set", 'cache.prefetch=["*"]']
        options += [part for setting in settings for part in ("--set", setting)]
        if tenants:
            (folder / "tenants.toml").write_text("\n".join(_declared(*item) for item in tenants.items()))
            options += ["--tenants", str(folder / "tenants.toml")]
        with served(*options) as server:
            if not tenants:
                load_all(server.address, names)
            yield Crowd(server, names, tuple(texts), generators)


def token_of(tenant: str) -> str:
    return f"token-of-{tenant}"


def _declared(tenant: str, weight: float) -> str:
    credential = f"{PREFIX}{digest_of(token_of(tenant))}"
    return f'[{tenant}]\ncredentials = ["{credential}"]\nshared = ["*"]\nweight = {weight}\n'


@dataclass(frozen=True, slots=True)
class Got:
    """What one tenant, or all of them, got in a part of a run.

    seconds         of that part
    latency_s       of what was answered, sorted
    """

    seconds: float
    offered_per_s: float
    answered_per_s: float
    tokens: int
    latency_s: NDArray[np.float64]
    num_refused: int
    num_failed: int

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.latency_s, q)) if len(self.latency_s) else float("inf")


def got(outcomes: Outcomes, since_s: float, until_s: float, tenant: int | None = None) -> Got:
    """Work is counted where it is answered in that time, latency and refusals of requests that were due in it."""
    is_own = np.full(len(outcomes.code), True) if tenant is None else outcomes.schedule.tenant == tenant
    is_due = is_own & (outcomes.schedule.at_s >= since_s) & (outcomes.schedule.at_s < until_s)
    is_answered = is_own & (outcomes.code == 0) & (outcomes.done_s >= since_s) & (outcomes.done_s < until_s)
    seconds = until_s - since_s
    return Got(
        seconds=seconds,
        offered_per_s=float(is_due.sum()) / seconds,
        answered_per_s=float(is_answered.sum()) / seconds,
        tokens=int(outcomes.num_tokens[is_answered].sum()),
        latency_s=np.sort(outcomes.latency_s[is_due & (outcomes.code == 0)]),
        num_refused=int((is_due & (outcomes.code == REFUSED)).sum()),
        num_failed=int((is_due & (outcomes.code != 0) & (outcomes.code != REFUSED)).sum()),
    )
