"""Where a batch's time goes, by layer and part: clocks around the base's own modules."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn

from server.model.base import Base
from server.model.families import Ending


@dataclass(frozen=True, slots=True)
class Share:
    """Seconds of one layer, medians over passes.

    projections   the base's own Linears, query to output
    attention     the attention module without its Linears
    sites         ends of sub-layers without their Linears: residuals, LayerNorms, adapters
    other         what is left: activations, deltas, edits
    """

    layer: float
    projections: float
    attention: float
    sites: float

    @property
    def other(self) -> float:
        return self.layer - self.projections - self.attention - self.sites


class LayerClock:
    """Measures passes while it is entered. On a GPU it waits at every border: shares, not rates."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._open: dict[tuple[int, str], float] = {}
        self._spent: dict[tuple[int, str], list[float]] = defaultdict(list)

    def __enter__(self) -> LayerClock:
        family = self._base.family
        for index, layer in enumerate(family.layers(self._base.model)):
            linears = {path: layer.get_submodule(path) for path in family.projections.values()}
            self._watch(layer, index, "layer")
            self._watch(layer.get_submodule(family.attention), index, "attention")
            for path, linear in linears.items():
                self._watch(linear, index, path)
            for kind, site in family.sites.items():
                if isinstance(site, Ending):
                    self._watch(layer.get_submodule(site.module), index, f"site {kind.value}")
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, module: nn.Module, layer: int, name: str) -> None:
        key = (layer, name)
        self._hooks.append(module.register_forward_pre_hook(lambda *_: self._start(key)))
        self._hooks.append(module.register_forward_hook(lambda *_: self._stop(key)))

    def _start(self, key: tuple[int, str]) -> None:
        self._open[key] = self._now()

    def _stop(self, key: tuple[int, str]) -> None:
        self._spent[key].append(self._now() - self._open.pop(key))

    def _now(self) -> float:
        if self._base.device.type == "cuda":
            torch.cuda.synchronize(self._base.device)
        return perf_counter()

    def shares(self) -> list[Share]:
        """One per layer."""
        return [self._share(layer) for layer in range(self._base.info.num_layers)]

    def _share(self, layer: int) -> Share:
        family = self._base.family
        spent = {name: statistics.median(times) for (own, name), times in self._spent.items() if own == layer}
        inside_attention = [p for p in family.projections.values() if p.startswith(f"{family.attention}.")]
        sites = [name for name in spent if name.startswith("site ")]
        inside_sites = [
            path
            for path in family.projections.values()
            for site in family.sites.values()
            if isinstance(site, Ending) and path.startswith(f"{site.module}.")
        ]
        return Share(
            layer=spent["layer"],
            projections=_sum(spent, family.projections.values()),
            attention=spent["attention"] - _sum(spent, inside_attention),
            sites=_sum(spent, sites) - _sum(spent, inside_sites),
        )


def _sum(spent: Mapping[str, float], names: Iterable[str]) -> float:
    return sum(spent.get(name, 0.0) for name in names)


def profile(base: Base, run: Callable[[], None], passes: int) -> list[Share]:
    """Of `passes` runs, after one that warms up."""
    run()
    with LayerClock(base) as clock:
        for _ in range(passes):
            run()
    return clock.shares()
