"""The recorded cases, where they lie beside the repository, and their bases as lowering sees them."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from fakes import make_base
from safetensors.torch import load_file
from torch import Tensor

from adapters_cache.families import family_of
from server.core import BaseInfo
from server.primitives import Projection

CONFORMANCE = Path(os.environ.get("ADAPTERD_CONFORMANCE", Path(__file__).parents[1].parent / "shared" / "conformance"))
FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "deberta-v2", "modernbert")
EMBEDDINGS = ("embeddings.word_embeddings.weight", "embeddings.tok_embeddings.weight")


@cache
def manifest() -> dict[str, Any]:
    path = CONFORMANCE / "manifest.json"
    loaded: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"cases": [], "bases": {}}
    return loaded


def cases(tag: str | None = None) -> list[dict[str, Any]]:
    """The cases of the eight families, or those of them with a tag."""
    bases = manifest()["bases"]
    ours = [case for case in manifest()["cases"] if bases[case["base"]]["model_type"] in FAMILIES]
    return [case for case in ours if tag is None or tag in case["tags"]]


@cache
def recorded_base(folder: str) -> BaseInfo:
    config = json.loads((CONFORMANCE / folder / "config.json").read_text())
    per_group = config.get("inner_group_num", 1)
    depth = config.get("num_hidden_layers", config.get("n_layers"))
    hidden = config.get("hidden_size", config.get("dim"))
    return make_base(
        model_type=config["model_type"],
        hidden_size=hidden,
        num_layers=config["num_hidden_groups"] * per_group if config["model_type"] == "albert" else depth,
        embedding_size=config.get("embedding_size", hidden),
        num_heads=config.get("num_attention_heads", config.get("n_heads")),
        intermediate_size=config.get("intermediate_size", config.get("hidden_dim")),
        vocab_size=config["vocab_size"],
        layers_per_group=per_group,
    )


class RecordedWeights:
    """A recorded base's own weights."""

    def __init__(self, folder: str) -> None:
        self._state = load_file(CONFORMANCE / folder / "model.safetensors")
        self._base = recorded_base(folder)

    def projection_weight(self, layer: int, projection: Projection) -> Tensor:
        family = family_of(self._base.model_type)
        path = f"{family.layer(layer, self._base.layers_per_group)}.{family.projections[projection]}"
        return self._state[f"{path}.weight"]

    def projection_bias(self, layer: int, projection: Projection) -> Tensor | None:
        family = family_of(self._base.model_type)
        path = f"{family.layer(layer, self._base.layers_per_group)}.{family.projections[projection]}"
        return self._state.get(f"{path}.bias")

    def input_embeddings(self) -> Tensor:
        return next(self._state[name] for name in EMBEDDINGS if name in self._state)
