from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from lowered import Lowered, lowered, lowered_from
from make_adapters import RandomWeights, random_checkpoint

from adapters_cache.lowering import lower
from server.core import BaseInfo
from server.errors import MalformedCheckpoint, UnsupportedConfig
from server.primitives import Head, Task


@pytest.fixture
def small(base: BaseInfo) -> BaseInfo:
    return dataclasses.replace(base, vocab_size=40, embedding_size=16)


def head_of(base: BaseInfo, **config: Any) -> tuple[Lowered, Head]:
    found = lowered(base, None, head=config)
    assert found.spec.head is not None and found.spec.heads == {"adapter": found.spec.head}
    return found, found.spec.head


@pytest.mark.parametrize("head_type", ["masked_lm", "causal_lm"])
def test_language_model_goes_through_the_embedding_size(small: BaseInfo, head_type: str) -> None:
    found, head = head_of(small, head_type=head_type)
    assert head.task is (Task.FILL_MASK if head_type == "masked_lm" else Task.CAUSAL_LM)
    assert head.reads_tokens and not head.labels and not head.is_decoder_tied
    first, decoder = head.layers
    assert (
        first.dense.weight.shape == (16, 32) and first.activation == "gelu" and decoder.dense.weight.shape == (40, 16)
    )
    stored = found.checkpoint.head
    assert stored is not None and first.norm is not None and decoder.norm is None
    assert torch.equal(found.take(first.norm.weight), stored.tensors["heads.2.weight"])
    assert torch.equal(found.take(decoder.dense.weight), stored.tensors["heads.3.weight"])


def test_modules_of_a_language_model_are_counted(small: BaseInfo) -> None:
    found, head = head_of(small, head_type="masked_lm", activation_function=None, layer_norm=False, bias=False)
    stored = found.checkpoint.head
    assert stored is not None and [*stored.tensors] == ["heads.0.weight", "heads.0.bias", "heads.1.weight"]
    assert head.layers[0].norm is None and head.layers[1].dense.bias is None
    wide = dataclasses.replace(small, embedding_size=0)
    found, head = head_of(wide, head_type="causal_lm", layers=3)
    stored = found.checkpoint.head
    assert stored is not None and {key.split(".")[1] for key in stored.tensors} == {"0", "2", "3", "5", "6"}


@pytest.mark.parametrize("layers", [1, 3])
def test_language_model_whose_sizes_do_not_fit_is_refused(small: BaseInfo, layers: int) -> None:
    with pytest.raises(UnsupportedConfig, match="head_config.layers"):
        random_checkpoint(small, config=None, head={"head_type": "masked_lm", "layers": layers})


def test_decoder_that_is_the_embedding_matrix_is_not_stored(small: BaseInfo) -> None:
    checkpoint = random_checkpoint(small, config=None, head={"head_type": "masked_lm"})
    assert checkpoint.head is not None
    embeddings = RandomWeights(small).input_embeddings()
    head = dataclasses.replace(checkpoint.head, tensors={**checkpoint.head.tensors, "heads.3.weight": embeddings})
    tied = lowered_from(dataclasses.replace(checkpoint, head=head), small).spec.head
    assert tied is not None and tied.is_decoder_tied
    assert tied.layers[-1].dense.weight.num_elements == 0 and tied.layers[-1].dense.bias is not None
    spec, _ = lower(dataclasses.replace(checkpoint, head=head), small)
    assert spec.head is not None and not spec.head.is_decoder_tied


def test_choice_has_one_score(base: BaseInfo) -> None:
    _, head = head_of(base, head_type="multiple_choice", num_choices=4)
    assert head.task is Task.MULTIPLE_CHOICE and not head.labels and not head.reads_tokens
    assert [layer.dense.weight.shape for layer in head.layers] == [(32, 32), (1, 32)]
    assert head.layers[-1].dense.bias is not None


def test_parser_is_biaffine(base: BaseInfo) -> None:
    found, head = head_of(base, head_type="dependency_parsing", num_labels=3)
    stored = found.checkpoint.head
    assert head.task is Task.DEPENDENCY_PARSING and not head.layers and head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert stored is not None and head.biaffine is not None
    assert torch.equal(found.take(head.biaffine.arcs), stored.tensors["heads.biaffine_arcs.weight"])
    assert torch.equal(found.take(head.biaffine.relations), stored.tensors["heads.biaffine_rels.weight"])


@pytest.mark.parametrize("model_type", ["distilbert", "electra", "modernbert"])
def test_pooler_that_is_not_there_is_refused(base: BaseInfo, model_type: str) -> None:
    base = dataclasses.replace(base, model_type=model_type)
    with pytest.raises(UnsupportedConfig, match="head_config.use_pooler"):
        random_checkpoint(base, config=None, head={"head_type": "multiple_choice", "use_pooler": True})


def test_deberta_takes_every_token_for_the_pooler(base: BaseInfo) -> None:
    base = dataclasses.replace(base, model_type="deberta-v2")
    _, head = head_of(base, head_type="classification", use_pooler=True, num_labels=3)
    assert head.reads_tokens and not head.use_pooler and head.task is Task.TOKEN_CLASSIFICATION
    _, choice = head_of(base, head_type="multiple_choice", use_pooler=True)
    assert choice.reads_tokens and not choice.use_pooler and choice.task is Task.MULTIPLE_CHOICE
    with pytest.raises(UnsupportedConfig, match="head_config.use_pooler"):
        random_checkpoint(base, config=None, head={"head_type": "multilabel_classification", "use_pooler": True})


def test_parser_must_be_exactly_what_it_says(base: BaseInfo) -> None:
    checkpoint = random_checkpoint(base, config=None, head={"head_type": "dependency_parsing", "num_labels": 3})
    assert checkpoint.head is not None
    head = dataclasses.replace(checkpoint.head, config={**checkpoint.head.config, "num_labels": 4})
    with pytest.raises(MalformedCheckpoint, match="heads.biaffine_rels.weight"):
        lower(dataclasses.replace(checkpoint, head=head), base)
