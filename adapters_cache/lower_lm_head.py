"""Heads of language models: Linear, activation and LayerNorm down to the embedding size, then the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import BaseWeights
from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.fields import refusal
from adapters_cache.lower_bottleneck import SAME_ACTIVATION
from server.core import BaseInfo
from server.primitives import Affine, HeadLayer


def language_model_layers(
    config: Mapping[str, Any], base: BaseInfo, source: TensorSource, flat: FlatBuilder, weights: BaseWeights | None
) -> tuple[tuple[HeadLayer, ...], bool]:
    """Give the layers, and whether the decoder is the base's embedding matrix.

    Indices count every module: [Linear, activation if any, LayerNorm if any] x (layers - 1), Linear.
    Raises MalformedCheckpoint, UnsupportedConfig.
    """
    hidden, vocab = base.hidden_size, config["vocab_size"] or base.vocab_size
    size = config["embedding_size"] or base.embedding_size or hidden
    activation, has_norm = config["activation_function"], config["layer_norm"]
    # every Linear reads as many channels as the first one: only where sizes are equal can there be more than one
    if size != hidden and config["layers"] != 2:
        raise refusal("head_config.layers", config["layers"], f"2 where embedding_size is {size}, not {hidden}")
    stride = 1 + (activation is not None) + has_norm
    layers = []
    for number in range(config["layers"] - 1):
        index = stride * number
        dense = _affine(f"heads.{index}", (size, hidden), source, flat)
        norm = _affine(f"heads.{index + stride - 1}", (size,), source, flat) if has_norm else None
        layers.append(HeadLayer(dense, SAME_ACTIVATION.get(activation, activation), norm))
    key = f"heads.{stride * (config['layers'] - 1)}"
    decoder = source.take(f"{key}.weight", vocab, size)
    is_tied = weights is not None and _is_embedding(decoder, weights.input_embeddings())
    weight = flat.add(decoder[:0] if is_tied else decoder)
    bias = flat.add(source.take(f"{key}.bias", vocab)) if config["bias"] else None
    return (*layers, HeadLayer(Affine(weight, bias), None)), is_tied


def _affine(key: str, shape: tuple[int, ...], source: TensorSource, flat: FlatBuilder) -> Affine:
    weight = flat.add(source.take(f"{key}.weight", *shape))
    return Affine(weight, flat.add(source.take(f"{key}.bias", shape[0])))


def _is_embedding(decoder: Tensor, embeddings: Tensor) -> bool:
    """Whether the decoder, in the base's precision, is the embedding matrix. One that is being trained never is."""
    if decoder.requires_grad or decoder.shape != embeddings.shape:
        return False
    return torch.equal(decoder.to(embeddings), embeddings)
