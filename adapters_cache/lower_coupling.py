"""Invertible blocks on the embeddings (NICE) -> the coupling primitive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_cache.draft import EMBEDDINGS, Draft
from adapters_cache.formats.fields import refusal
from server.primitives import Affine, Coupling

PATH = "invertible_adapters"


def lower_coupling(config: Mapping[str, Any], draft: Draft) -> None:
    """Lower the block of a bottleneck configuration. Raises MalformedCheckpoint; UnsupportedConfig for GLOW."""
    if config["inv_adapter"] != "nice":
        raise refusal(
            "config.inv_adapter", config["inv_adapter"], '"nice" or null: AdapterHub cannot run others either'
        )
    factor = config["inv_adapter_reduction_factor"]
    if factor is None:
        raise refusal("config.inv_adapter_reduction_factor", factor, "a number above 0 beside inv_adapter")
    what = "the invertible block"
    draft.check_free(draft.couplings, EMBEDDINGS, what)
    size = draft.embedding_size
    first, second = size // 2, size - size // 2
    activation = config["non_linearity"]
    slope = None
    if activation == "prelu":
        slope = draft.flat.add(draft.source.take(f"{PATH}.non_linearity.f.weight", 1))
    coupling = Coupling(
        activation=activation,
        f=_network(draft, "F", second, int(second // factor), first),
        g=_network(draft, "G", first, int(first // factor), second),
        activation_weight=slope,
    )
    draft.put(draft.couplings, EMBEDDINGS, coupling, what)


def _network(draft: Draft, name: str, num_in: int, width: int, num_out: int) -> tuple[Affine, Affine]:
    return draft.affine(f"{PATH}.{name}.0", width, num_in), draft.affine(f"{PATH}.{name}.2", num_out, width)
