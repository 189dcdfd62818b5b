"""A second implementation, to compare the engine with: one unpadded sequence at a time, in float64, torch only.

BERT and RoBERTa with AdapterHub's adapters, compositions and heads, as the description of the checkpoints has them. It
shares no code with the packages under test. Compositions are the trees of the recorded cases: an adapter's name or
{"type": "Stack" | "Fuse" | "Average" | "Split" | "Parallel", "children": [...], ...}.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from plain_files import LANGUAGE_MODELS, Adapter, Base, Fusion, Head
from plain_methods import (
    LINEARS,
    SITES,
    Bottleneck,
    Delta,
    Norm,
    activation,
    affine,
    coupled,
    edited,
    normed,
    own_rows,
    prefix,
    with_prompt,
)
from torch import Tensor

Tree = Any  # None, a name, or a mapping
Outputs = dict[str, Tensor]


def leaves(tree: Tree) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif tree is not None:
        for child in tree["children"]:
            yield from leaves(child)


def results(tree: Tree) -> list[Tree]:
    """One tree per result: child i of every Parallel."""
    widths = {len(node["children"]) for node in _parallels(tree)}
    assert len(widths) <= 1, "several Parallel blocks have equally many children"
    return [_chosen(tree, i) for i in range(widths.pop() if widths else 1)]


def _parallels(tree: Tree) -> Iterator[Tree]:
    if isinstance(tree, Mapping):
        if tree["type"] == "Parallel":
            yield tree
        for child in tree["children"]:
            yield from _parallels(child)


def _chosen(tree: Tree, number: int) -> Tree:
    if not isinstance(tree, Mapping):
        return tree
    if tree["type"] == "Parallel":
        return tree["children"][number]
    return {**tree, "children": [_chosen(child, number) for child in tree["children"]]}


@dataclass
class Plain:
    """A base with adapters and fusions by the names that trees use (fusions: also `a,b` for their members)."""

    base: Base
    adapters: Mapping[str, Adapter]
    fusions: Mapping[str, Fusion] = field(default_factory=dict)

    def run(
        self,
        ids: Sequence[int],
        types: Sequence[int],
        tree: Tree,
        heads: Sequence[str | None] = (),
        skip_layers: Collection[int] = (),
        word_starts: Sequence[int] = (),
    ) -> list[Outputs]:
        """Hidden states, pooler output and the head's answers of every result; several heads on one give one each."""
        trees = results(tree)
        if len(trees) == 1 and heads:
            trees = trees * len(heads)
        names = list(heads) or [None]
        names = names * len(trees) if len(names) == 1 else names
        hidden = {i: self.encode(ids, types, own, skip_layers) for i, own in enumerate(trees)}
        found = []
        for i, (own, name) in enumerate(zip(trees, names, strict=True)):
            outputs = {"last_hidden_state": hidden[i], "pooler_output": self.pooled(hidden[i])}
            head = self.adapters[name].head if name is not None else None
            found.append(outputs | (self.answer(head, hidden[i], own, word_starts) if head else {}))
        return found

    # the base

    def encode(self, ids: Sequence[int], types: Sequence[int], tree: Tree, skip_layers: Collection[int]) -> Tensor:
        state, first = self.base.tensors, self.adapters.get(next(leaves(tree), ""))
        h = (
            state["embeddings.word_embeddings.weight"][list(ids)]
            + state["embeddings.token_type_embeddings.weight"][list(types)]
            + state["embeddings.position_embeddings.weight"][self._positions(ids)]
        )
        h = with_prompt(first, coupled(first, self._norm("embeddings.LayerNorm")(h)))
        for layer in range(self.base.config["num_hidden_layers"]):
            own = None if layer in skip_layers else tree
            h = self._layer(layer, h, own)
            h = edited(first if own is not None else None, layer, h)
        return h

    def pooled(self, hidden: Tensor) -> Tensor:
        return torch.tanh(affine(hidden[0], self.base.tensors, "pooler.dense"))

    def _positions(self, ids: Sequence[int]) -> list[int]:
        if self.base.config["model_type"] == "bert":
            return list(range(len(ids)))
        padding, places, count = self.base.config["pad_token_id"], [], 0
        for token in ids:
            count += token != padding
            places.append(padding + (count if token != padding else 0))
        return places

    def _norm(self, path: str) -> Norm:
        state, eps = self.base.tensors, self.base.config["layer_norm_eps"]
        return lambda x: normed(x, state[f"{path}.weight"], state[f"{path}.bias"], eps)

    def _layer(self, layer: int, x: Tensor, tree: Tree) -> Tensor:
        path = f"encoder.layer.{layer}"
        attended = self._attention(layer, x, tree)
        projected = affine(attended, self.base.tensors, f"{path}.attention.output.dense")
        h = self._site(layer, "mh", projected, x, tree)
        middle = activation(self.base.config["hidden_act"])(self._linear(layer, "intermediate", h, tree))
        return self._site(layer, "output", self._linear(layer, "output", middle, tree), h, tree)

    def _attention(self, layer: int, x: Tensor, tree: Tree) -> Tensor:
        query, keys, values = (self._linear(layer, name, x, tree) for name in "qkv")
        for name in leaves(tree):
            found = prefix(self.adapters.get(name), layer, self.base.config["num_hidden_layers"], x)
            if found is not None:
                keys, values = torch.cat([found[0], keys]), torch.cat([found[1], values])
        size = x.shape[-1] // self.base.config["num_attention_heads"]
        parts = []
        for start in range(0, x.shape[-1], size):
            own = slice(start, start + size)
            scores = query[:, own] @ keys[:, own].T / math.sqrt(size)
            parts.append(torch.softmax(scores, dim=-1) @ values[:, own])
        return torch.cat(parts, dim=-1)

    # projections

    def _linear(self, layer: int, linear: str, x: Tensor, tree: Tree) -> Tensor:
        path = f"encoder.layer.{layer}.{LINEARS[linear]}"
        y = affine(x, self.base.tensors, path)
        here = {name: Delta.at(self.adapters[name], layer, linear) for name in leaves(tree)}
        owners = [delta for delta in here.values() if delta is not None]
        if not owners:
            return y
        value = _delta(tree, here, x, None)
        assert value is not None
        last = [here[name] for name in leaves(tree) if here[name] is not None][-1]
        assert last is not None
        return last.combined(y, value, self.base.tensors[f"{path}.weight"])

    # bottlenecks

    def _site(self, layer: int, site: str, h: Tensor, t: Tensor, tree: Tree) -> Tensor:
        path = f"encoder.layer.{layer}.{SITES[site]}"
        norm = self._norm(f"{path}.LayerNorm")
        here = {name: Bottleneck.at(self.adapters[name], layer, site) for name in leaves(tree)}
        state = self._compose(tree, _State(h, t, h, norm, here, path)) if any(here.values()) else None
        if state is None or state.last is None:
            return norm(h + t)
        return state.last.post(state.h, h, t, norm)

    def _compose(self, tree: Tree, state: _State) -> _State:
        if isinstance(tree, str):
            module = state.here[tree]
            return _run(module, _prepared(module, state)) if module is not None else state
        if not any(state.here[name] for name in leaves(tree)):
            return state
        if tree["type"] == "Stack":
            for child in tree["children"]:
                state = self._compose(child, state)
            return state
        if tree["type"] == "Fuse":
            return self._fuse(tree, state)
        if tree["type"] == "Average":
            return self._average(tree, state)
        return self._split(tree, state)

    def _member(self, child: Tree, state: _State) -> _State:
        """A block has done the steps before an adapter for all its members; a member that is a block repeats them."""
        if isinstance(child, str):
            module = state.here[child]
            return _run(module, state) if module is not None else state
        return self._compose(child, state)

    def _average(self, tree: Tree, state: _State) -> _State:
        state = _prepared(state.here[next(leaves(tree))], state)
        children = tree["children"]
        done = [self._member(child, state) for child in children]
        mean = sum((w * part.h for w, part in zip(factors(tree), done, strict=True)), torch.zeros(()))
        return replace(done[-1], h=mean / len(children))

    def _split(self, tree: Tree, state: _State) -> _State:
        state = _prepared(state.here[next(leaves(tree))], state)
        parts, last, start = [], None, 0
        for child, length in zip(tree["children"], lengths(tree), strict=True):
            own = slice(start, start + length)
            part = replace(state, h=state.h[own], t=state.t[own], residual=state.residual[own], last=None)
            done = self._member(child, part)
            parts.append(done.h)
            last, start = done.last or last, start + length
        assert start == len(state.h)
        return replace(state, h=torch.cat(parts), last=last)

    def _fuse(self, tree: Tree, state: _State) -> _State:
        members = [list(leaves(child))[-1] for child in tree["children"]]
        fusion = self.fusions[tree.get("name") or ",".join(members)]
        option, path = fusion.config, f"{state.path}.adapter_fusion_layer.{fusion.name}"
        last = state.here[members[-1]]
        assert last is not None
        h, residual, query = last.pre(state.h, state.t, state.norm, bool(option.get("query_before_ln")))
        state = replace(state, h=h, residual=residual)
        children = [child for child in tree["children"] if any(state.here[name] for name in leaves(child))]
        ups = [self._member(child, replace(state, up=None)).up for child in children]
        values = torch.stack([up for up in ups if up is not None])
        if option.get("residual_before"):
            values = values + residual
        query = affine(query, fusion.tensors, f"{path}.query") if option["query"] else query
        keys = affine(values, fusion.tensors, f"{path}.key") if option["key"] else values
        scores = (query * keys).sum(-1) / (50.0 if option.get("temperature") else 1.0)
        shares = torch.softmax(scores, dim=0)[..., None]
        is_late = not option.get("value_before_softmax", True)
        if option["value"] and not is_late:
            values = affine(values, fusion.tensors, f"{path}.value")
        out = (shares * values).sum(0)
        if option["value"] and is_late:
            out = affine(out, fusion.tensors, f"{path}.value")
        return replace(state, h=out if option.get("residual_before") else out + residual, last=last)

    # heads

    def answer(self, head: Head, hidden: Tensor, tree: Tree, word_starts: Sequence[int]) -> Outputs:
        if head.kind == "dependency_parsing":
            first = self.adapters.get(next(leaves(tree), ""))
            return _parsed(head, hidden[own_rows(first, len(hidden))], word_starts)
        if head.kind in ("tagging", "question_answering", *LANGUAGE_MODELS):
            x = hidden
        else:
            x = self.pooled(hidden) if head.use_pooler else hidden[0]
        for i, layer in enumerate(head.layers):
            if head.kind in LANGUAGE_MODELS and i == len(head.layers) - 1:
                x = coupled(self.adapters.get(next(leaves(tree), "")), x, is_inverse=True)
            x = x @ layer.weight.T
            x = activation(layer.activation)(x if layer.bias is None else x + layer.bias)
            if layer.norm is not None:
                x = normed(x, *layer.norm, self.base.config["layer_norm_eps"])
        if head.kind == "question_answering":
            return {"start_logits": x[:, 0], "end_logits": x[:, 1]}
        return {"logits": x}


@dataclass(frozen=True)
class _State:
    """On the way through a tree at one site: `h` goes into the next module, `t` is the layer's residual."""

    h: Tensor
    t: Tensor
    residual: Tensor
    norm: Norm
    here: Mapping[str, Bottleneck | None]
    path: str
    up: Tensor | None = None
    last: Bottleneck | None = None


def _prepared(module: Bottleneck | None, state: _State) -> _State:
    assert module is not None, "a block's first adapter has no module here"
    h, residual, _ = module.pre(state.h, state.t, state.norm)
    return replace(state, h=h, residual=residual)


def _run(module: Bottleneck, state: _State) -> _State:
    out, up = module.core(state.h, state.residual)
    return replace(state, h=out, up=up, last=module)


def _delta(tree: Tree, here: Mapping[str, Delta | None], x: Tensor, value: Tensor | None) -> Tensor | None:
    if isinstance(tree, str):
        delta = here[tree]
        return value if delta is None else delta.value(x, value)
    if tree["type"] == "Stack":
        for child in tree["children"]:
            value = _delta(child, here, x, value)
        return value
    if not any(here[name] for name in leaves(tree)):
        return value
    assert tree["type"] == "Average"
    parts = [_delta(child, here, x, value) for child in tree["children"]]
    total = torch.zeros(())
    for weight, part in zip(factors(tree), parts, strict=True):
        assert part is not None, "an Average's member has nothing here"
        total = total + weight * part
    return total / len(parts)


def factors(tree: Tree) -> list[float]:
    count, weights = len(tree["children"]), tree.get("weights")
    if weights is None:
        return [1 / count] * count
    return list(weights) if not tree.get("normalize_weights", True) else [w / sum(weights) for w in weights]


def lengths(tree: Tree) -> list[int]:
    splits = tree["splits"]
    return splits if isinstance(splits, list) else [splits] * len(tree["children"])


def _parsed(head: Head, hidden: Tensor, starts: Sequence[int]) -> Outputs:
    """Words are stretches of the sample's own tokens. (With a prompt the library reads as many tokens too early.)"""
    words = torch.stack([hidden[a:b].mean(0) for a, b in zip(starts, starts[1:], strict=False)])
    heads = torch.cat([hidden[:1], words])
    ones = torch.ones(len(heads), 1, dtype=hidden.dtype)
    dependents, all_heads = torch.cat([words, ones[1:]], dim=1), torch.cat([heads, ones], dim=1)
    relations = [dependents @ weight @ all_heads.T for weight in head.tensors["biaffine_rels.weight"]]
    arcs = dependents @ head.tensors["biaffine_arcs.weight"][0] @ heads.T
    return {"arc_preds": arcs, "rel_preds": torch.stack(relations, dim=-1)}
