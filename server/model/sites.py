"""Stitching: adapters at the sites of an unmodified `transformers` model.

Every module keeps its parameters and their names; only the `forward` of the instances that matter is replaced, and each
replacement asks the `Stitching` what the pass under way wants there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from server.model.dense import Product, product
from server.model.disentangled import stitch_disentangled
from server.model.families import Around, Behind, Ending, Family
from server.model.joined import Joined, join
from server.model.kernels import Kernels
from server.model.launches import LaunchedDeltas, Launches
from server.model.packing import PackedBatch
from server.model.routing import DeltaGroup, RoutingPlan, SitePlan
from server.model.upload import indices
from server.primitives import Projection, SiteKind

Forward = Callable[..., Any]
JOINED = (Projection.QUERY, Projection.KEY, Projection.VALUE)


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """Rows from one layer on: how they lie and where they go.

    layer    the first layer that these rows go through; 0 for those that the embeddings give
    gather   [T] token of the phase before that each token is a copy of; None in the first phase
    origin   [T] the same, of the first phase
    launches the backend's own, prepared for the whole phase; None where it makes them place by place
    """

    layer: int
    packed: PackedBatch
    plan: RoutingPlan
    gather: Tensor | None = None
    origin: Tensor | None = None
    launches: Launches | None = None


class _Pass(threading.local):
    """What one thread's pass is about."""

    def __init__(self) -> None:
        self.packed: PackedBatch | None = None
        self.plan: RoutingPlan | None = None
        self.layer_input: Tensor | None = None
        self.launches: Launches | None = None
        self.waiting: list[Phase] = []
        self.origin: Tensor | None = None
        self.probe: Callable[[int, Projection], Sequence[DeltaGroup]] | None = None
        self.seen: dict[tuple[int, str, str], Tensor] = {}


class Stitching:
    """Holds the phases of the pass under way; every stitched module reads them here.

    Each thread has a pass of its own, so that training and serving share one model.
    """

    def __init__(self, model: nn.Module, family: Family, kernels: Kernels, quantization: str = "none") -> None:
        self.kernels = kernels
        self._quantization = quantization
        self._now = _Pass()
        self._stitch(model, family)

    @property
    def packed(self) -> PackedBatch | None:
        """The rows of the pass under way; None outside of one."""
        return self._now.packed

    @property
    def plan(self) -> RoutingPlan | None:
        return self._now.plan

    @property
    def layer_input(self) -> Tensor | None:
        """[T, H] of the layer under way"""
        return self._now.layer_input

    def begin(self, phases: Sequence[Phase]) -> None:
        """Start a pass of this thread over packed rows."""
        now = self._now
        first, *now.waiting = phases
        now.packed, now.plan, now.launches, now.origin = first.packed, first.plan, first.launches, None

    def end(self) -> None:
        """Forget the pass: its plan would keep slots alive that are given up."""
        now = self._now
        now.packed = now.plan = now.launches = now.origin = now.layer_input = None
        now.waiting = []
        now.seen.clear()

    def deltas(self, layer: int, projection: Projection) -> Sequence[DeltaGroup]:
        now = self._now
        if now.probe is not None:
            return now.probe(layer, projection)
        if now.launches is not None:
            return now.launches.deltas(layer, projection)
        return now.plan.projection(layer, projection) if now.plan else ()

    def probing(self, probe: Callable[[int, Projection], Sequence[DeltaGroup]] | None) -> None:
        """Let projections take their deltas from `probe`, for inputs that are not the batch's tokens; None ends it."""
        self._now.probe = probe

    # stitching

    def _stitch(self, model: nn.Module, family: Family) -> None:
        _wrap(model.get_submodule(family.words), self._words)
        _wrap(model.get_submodule(family.embeddings), self._embeddings)
        layers = family.layers(model)
        for index, layer in enumerate(layers):
            attention = layer.get_submodule(family.attention)
            # Not submodules, so that neither state_dict nor .to() sees them.
            object.__setattr__(attention, "adapterd_stitching", self)
            object.__setattr__(attention, "adapterd_layer", index)
            joined = self._join(layer, family)
            for projection, path in family.projections.items():
                is_spare = joined is not None and projection in JOINED
                module = layer.get_submodule(path)
                _wrap(module, self._projection(module, index, projection, is_spare))
            if joined is not None:
                self._together(joined, [layer.get_submodule(family.projections[p]) for p in JOINED], index)
            for kind, site in family.sites.items():
                if isinstance(site, Ending):
                    self._end(layer.get_submodule(site.module), index, kind)
                elif isinstance(site, Around):
                    self._surround(layer, site, index, kind)
                else:
                    self._follow(model, layer, site, index, kind, len(layers) - 1)
            if family.is_disentangled:
                stitch_disentangled(attention, index, self)
            _wrap(attention, self._attention)
            _wrap(layer, self._layer(index))
        if family.is_disentangled:
            _leave_masks_alone(model)

    def _site(self, layer: int, kind: SiteKind) -> SitePlan:
        now = self._now
        if now.launches is not None:
            return now.launches.site(layer, kind)
        return now.plan.site(layer, kind) if now.plan else ()

    def _run_site(
        self, hidden: Tensor, residual: Tensor, norm: Any, layer: int, kind: SiteKind, closes: bool = True
    ) -> Tensor:
        size = hidden.shape
        rows, residual_rows = hidden.reshape(-1, size[-1]), residual.reshape(-1, size[-1])
        return self.kernels.site(rows, residual_rows, norm, self._site(layer, kind), closes).view(size)

    def _end(self, module: Any, layer: int, kind: SiteKind) -> None:
        def forward(hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
            projected = module.dropout(module.dense(hidden_states))
            return self._run_site(projected, input_tensor, module.LayerNorm, layer, kind)

        object.__setattr__(module, "forward", forward)

    def _surround(self, layer_module: nn.Module, site: Around, layer: int, kind: SiteKind) -> None:
        norm: Any = layer_module.get_submodule(site.norm)
        plain = norm.forward
        for path, side in (site.hidden, site.residual):
            self._remember(layer_module.get_submodule(path), (layer, path, side))

        def forward(summed: Tensor) -> Tensor:
            plan = self._site(layer, kind)
            if not plan:
                return plain(summed)  # type: ignore[no-any-return]
            hidden, residual = self._now.seen[layer, *site.hidden], self._now.seen[layer, *site.residual]
            size = summed.shape
            rows = hidden.reshape(-1, size[-1]).clone()  # a backend may overwrite it, and it is not ours
            return self.kernels.site(rows, residual.reshape(-1, size[-1]), plain, plan).view(size)

        object.__setattr__(norm, "forward", forward)

    def _follow(
        self, model: nn.Module, layer_module: nn.Module, site: Behind, layer: int, kind: SiteKind, last: int
    ) -> None:
        norm = model.get_submodule(site.norm.format(last=last)) if site.norm else nn.Identity()
        self._remember(layer_module.get_submodule(site.residual), (layer, site.residual, "in"))

        def around(forward: Forward, x: Tensor) -> Tensor:
            hidden = forward(x)
            if not self._site(layer, kind):
                return hidden  # type: ignore[no-any-return]
            return self._run_site(hidden, self._now.seen[layer, site.residual, "in"], norm, layer, kind, closes=False)

        _wrap(layer_module.get_submodule(site.projection), around)

    def _remember(self, module: nn.Module, key: tuple[int, str, str]) -> None:
        """Keep what goes into or comes out of a module until its layer is done."""

        def around(forward: Forward, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = forward(hidden, *args, **kwargs)
            self._now.seen[key] = hidden if key[2] == "in" else out[0] if isinstance(out, tuple) else out
            return out

        def before(forward: Forward, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._now.seen[key] = hidden
            return forward(hidden, *args, **kwargs)

        _wrap(module, before if key[2] == "in" else around)

    def _projection(self, module: Any, layer: int, projection: Projection, is_spare: bool) -> Forward:
        """is_spare: the module is rarely called for itself, and its product is made when it is"""

        def made() -> Product:
            return product(module.weight, module.bias, self._quantization)

        multiply = _on_first_use(made) if is_spare else made()

        def around(forward: Forward, x: Tensor) -> Tensor:
            groups = self.deltas(layer, projection)
            if not groups:
                return multiply(x)
            x = _with_input_scales(x, groups)
            y = multiply(x)
            size = y.shape
            done = self.kernels.projection(y.view(-1, size[-1]), x.reshape(-1, x.shape[-1]), groups)
            return done.view(size)

        return around

    def _join(self, layer_module: nn.Module, family: Family) -> Joined | None:
        """Query, key and value of a layer in one product, None where they stay apart."""
        if not self.kernels.JOINS:
            return None
        modules = [layer_module.get_submodule(family.projections[p]) for p in JOINED if p in family.projections]
        return join(modules, self._quantization)

    def _together(self, joined: Joined, modules: Sequence[nn.Module], layer: int) -> None:
        """Have the query's call compute key and value too, with all deltas, wherever nothing speaks against it."""

        def first(alone: Forward, x: Tensor) -> Tensor:
            y = self._joined(joined, layer, x)
            return alone(x) if y is None else joined.keep(x, y)

        def other(number: int) -> Forward:
            def around(alone: Forward, x: Tensor) -> Tensor:
                kept = joined.take(number, x)
                return alone(x) if kept is None else kept

            return around

        for number, module in enumerate(modules):
            _wrap(module, other(number) if number else first)

    def _joined(self, joined: Joined, layer: int, x: Tensor) -> Tensor | None:
        """[..., 3 * out] of one input; None where each has to go its own way."""
        if self._now.probe is not None or not joined.is_intact:
            return None
        parts = [self.deltas(layer, projection) for projection in JOINED]
        if any(_has_input_scales(groups) for groups in parts):
            return None
        y = joined.product(x)
        if not any(parts):
            return y
        size = y.shape
        return self.kernels.projections(y.view(-1, size[-1]), x.reshape(-1, x.shape[-1]), parts).view(size)

    def _attention(self, forward: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self._now.layer_input = hidden_states.reshape(-1, hidden_states.shape[-1])
        return forward(hidden_states, *args, **kwargs)

    def _layer(self, layer: int) -> Forward:
        """Before a layer, rows that part there are copied; after it, edits are made."""

        def around(forward: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._now.waiting and self._now.waiting[0].layer == layer:
                hidden_states = self._advance(hidden_states)
            if self._now.origin is not None and "position_embeddings" in kwargs:  # made once for all layers
                kwargs["position_embeddings"] = tuple(
                    x.index_select(1, self._now.origin) for x in kwargs["position_embeddings"]
                )
            out = forward(hidden_states, *args, **kwargs)
            self._now.seen.clear()
            edits = self._now.plan.edits(layer) if self._now.plan else ()
            if not edits:
                return out
            hidden: Tensor = out[0] if isinstance(out, tuple) else out
            rows = hidden.reshape(-1, hidden.shape[-1])
            for samples, weights in edits:
                rows = self.kernels.edit(rows, samples, weights)
            return (rows.view_as(hidden), *out[1:]) if isinstance(out, tuple) else rows.view_as(hidden)

        return around

    def _advance(self, hidden: Tensor) -> Tensor:
        now = self._now
        phase = now.waiting.pop(0)
        now.packed, now.plan, now.launches, now.origin = phase.packed, phase.plan, phase.launches, phase.origin
        assert phase.gather is not None
        return hidden.index_select(1, phase.gather)

    def _words(self, forward: Forward, ids: Tensor) -> Tensor:
        return self._with_prompts(forward(ids), is_before=True)

    def _embeddings(self, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        embedded: Tensor = forward(*args, **kwargs)
        size = embedded.shape
        if self._now.plan and self._now.plan.couplings:
            rows, parts, position = embedded.reshape(-1, size[-1]), [], 0
            for (start, end), weights in self._now.plan.couplings:
                parts += [rows[position:start], self.kernels.couple(rows[start:end], weights)]
                position = end
            embedded = torch.cat([*parts, rows[position:]]).view(size)
        return self._with_prompts(embedded, is_before=False)

    def _with_prompts(self, embedded: Tensor, *, is_before: bool) -> Tensor:
        """Write the prompts into the places that packing left for them."""
        prompts = [
            p
            for p in (self._now.plan.prompts if self._now.plan else ())
            if p[1].prompt.is_before_embeddings is is_before
        ]
        if not prompts:
            return embedded
        rows = embedded.reshape(-1, embedded.shape[-1])
        for samples, weights in prompts:
            length, skip = len(weights.embeddings), int(weights.prompt.is_after_first)
            places = indices([a + skip + i for a, _ in samples for i in range(length)], rows.device)
            rows = rows.index_copy(0, places, weights.embeddings.repeat(len(samples), 1))
        return rows.view_as(embedded)


def _has_input_scales(groups: Sequence[DeltaGroup]) -> bool:
    if isinstance(groups, LaunchedDeltas):
        return False
    return any(weights.input_scale is not None for group in groups for weights in group.weights.values())


def _with_input_scales(x: Tensor, groups: Sequence[DeltaGroup]) -> Tensor:
    """What a projection reads where adapters scale its input; theirs are never composed with others."""
    if not _has_input_scales(groups):
        return x
    scaled = [(g, w.input_scale) for g in groups for w in g.weights.values() if w.input_scale is not None]
    rows, parts, position = x.reshape(-1, x.shape[-1]), [], 0
    for group, scale in scaled:
        parts += [rows[position : group.start], rows[group.start : group.end] * scale]
        position = group.end
    return torch.cat([*parts, rows[position:]]).view(x.shape)


def _on_first_use(make: Callable[[], Product]) -> Product:
    made: list[Product] = []

    def call(x: Tensor) -> Tensor:
        if not made:
            made.append(make())
        return made[0](x)

    return call


def _wrap(module: nn.Module, around: Callable[..., Any]) -> None:
    """Replace a module's forward by `around(forward, ...)` on this instance."""
    forward = module.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(forward, *args, **kwargs)

    object.__setattr__(module, "forward", wrapped)


def _leave_masks_alone(model: Any) -> None:
    """DeBERTa's encoder would build [T, T] masks and positions for the packed row; attention makes its own."""
    object.__setattr__(model.encoder, "get_attention_mask", lambda mask: mask)
    object.__setattr__(model.encoder, "get_rel_pos", lambda *args, **kwargs: None)
