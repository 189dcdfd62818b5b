"""ReFT (LoReFT, NoReFT, DiReFT) -> edits of hidden states after a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import Draft
from adapters_cache.flat import TensorSource
from adapters_cache.formats.fields import refusal
from server.primitives import Edit, Edits


def lower_reft(config: Mapping[str, Any], draft: Draft) -> None:
    """Lower the edits of every selected layer. Raises MalformedCheckpoint, UnsupportedConfig."""
    if not config["output_reft"]:
        return
    selected = range(draft.base.num_layers) if config["layers"] == "all" else config["layers"]
    if any(layer >= draft.base.num_layers for layer in selected):
        raise refusal("config.layers", config["layers"], f"layers below {draft.base.num_layers}")
    for layer in selected:
        what = f"the edits of layer {layer}"
        draft.check_free(draft.edits, layer, what)
        path = f"{draft.layer(layer)}.reft_layer.refts.units"
        count = 1 if config["tied_weights"] else 2
        units = [_edit(config, f"{path}.{unit}", draft) for unit in range(count)]
        edits = Edits(
            activation=config["non_linearity"],
            num_first=config["prefix_positions"],
            num_last=config["suffix_positions"],
            first=units[0] if config["prefix_positions"] else None,
            last=units[-1] if config["suffix_positions"] else None,
            subtracts=config["subtract_projection"],
        )
        draft.put(draft.edits, layer, edits, what)


def _edit(config: Mapping[str, Any], path: str, draft: Draft) -> Edit:
    rank, hidden = config["r"], draft.base.hidden_size
    source = draft.affine(f"{path}.learned_source", rank, hidden)
    if config["orthogonality"]:
        projection = _orthogonal(f"{path}.projection.parametrizations.weight", rank, hidden, draft.source)
    else:
        projection = draft.source.take(f"{path}.projection.weight", rank, hidden)
    return Edit(source, draft.flat.add(projection))


def _orthogonal(path: str, rank: int, hidden: int, source: TensorSource) -> Tensor:
    """Evaluate torch's orthogonal parametrisation of a weight [rank, hidden]: Householder; if square, exponential."""
    size = max(rank, hidden)
    original, base = source.take(f"{path}.original", rank, hidden), source.take(f"{path}.0.base", size, size)
    if rank == hidden:
        lower = original.tril()
        square: Tensor = base @ torch.linalg.matrix_exp(lower - lower.t())
        return square
    x = original.t() if rank < hidden else original
    below = x.tril(-1)
    tau = 2.0 / (1.0 + (below * below).sum(0))
    # the diagonal holds signs, not parameters
    q: Tensor = base @ (torch.linalg.householder_product(below, tau) * x.diagonal().detach().int())
    return q.t() if rank < hidden else q
