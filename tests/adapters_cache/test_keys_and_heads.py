from __future__ import annotations

import pytest
import torch

from adapters_cache.formats.heads import canonical_head, read_head
from adapters_cache.formats.keys import adapter_tensors, drop_aliases, layer_of, with_aliases, without_layers
from server.errors import MalformedCheckpoint, UnsupportedConfig

ONE = torch.ones(1)


@pytest.mark.parametrize("name", ["sst", "output", "adapters", "self", "a-b_c", "a+b", "adapter_down"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_prefix_and_name_are_stripped_whatever_the_name(name: str, prefix: str) -> None:
    keys = [f"encoder.layer.11.{site}output.adapters.{name}.adapter_up.bias" for site in ("", "attention.")]
    found = adapter_tensors({prefix + key: ONE for key in keys}, "bert", name)
    assert list(found) == [
        "encoder.layer.11.output.adapters.adapter_up.bias",
        "encoder.layer.11.attention.output.adapters.adapter_up.bias",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("bert.encoder.layer.0.output.layer_text_task_adapters.x.scaling", "encoder.layer.0.output.adapters.scaling"),
        (
            "encoder.layer.0.attention.output.attention_text_lang_adapters.x.scaling",
            "encoder.layer.0.attention.output.adapters.scaling",
        ),
        ("bert.invertible_lang_adapters.x.F.0.weight", "invertible_adapters.F.0.weight"),
    ],
)
def test_keys_of_2020_become_modern(old: str, new: str) -> None:
    assert list(adapter_tensors({old: ONE}, "bert", "x")) == [new]


@pytest.mark.parametrize(
    "key",
    [
        "bert.encoder.layer.0.output.adapters.other.adapter_up.bias",
        "roberta.encoder.layer.0.output.adapters.x.adapter_up.bias",
        "my.bert.encoder.layer.0.output.adapters.x.adapter_up.bias",
    ],
)
def test_key_of_another_form_stays_as_it_is(key: str) -> None:
    assert list(adapter_tensors({key: ONE}, "bert", "x")) == [key]


def test_two_keys_for_one_tensor_are_malformed() -> None:
    key = "encoder.layer.0.output.adapters.x.adapter_up.bias"
    with pytest.raises(MalformedCheckpoint, match="twice"):
        adapter_tensors({key: ONE, "bert." + key: ONE}, "bert", "x")


def test_aliases_are_dropped_and_restored() -> None:
    site = "encoder.layer.0.output.adapters."
    owners = {f"{site}adapter_norm_before.weight": ONE, f"{site}non_linearity.f.weight": ONE * 2}
    stored = with_aliases(owners)
    assert stored.keys() - owners.keys() == {f"{site}adapter_down.0.weight", f"{site}adapter_down.2.f.weight"}
    assert drop_aliases(stored) == owners


def test_slope_of_an_invertible_block_is_one_tensor() -> None:
    owner = {"invertible_adapters.non_linearity.f.weight": ONE}
    stored = with_aliases(owner)
    assert stored.keys() == {"invertible_adapters.F.1.f.weight", "invertible_adapters.G.1.f.weight"}
    assert drop_aliases(stored) == owner
    with pytest.raises(MalformedCheckpoint, match="differ"):
        drop_aliases({**stored, "invertible_adapters.G.1.f.weight": ONE * 2})


def test_linear_without_a_norm_in_front_is_no_alias() -> None:
    linear = {"s.adapter_down.0.weight": torch.ones(2, 4), "s.adapter_down.0.bias": torch.ones(2)}
    assert drop_aliases(linear) == linear


def test_alias_alone_stands_for_the_tensor() -> None:
    alias = {"s.adapter_down.1.f.weight": ONE}
    assert drop_aliases(alias) == {"s.non_linearity.f.weight": ONE}


def test_aliases_that_differ_are_malformed() -> None:
    tensors = {"s.adapter_norm_before.bias": ONE, "s.adapter_down.0.bias": ONE * 2}
    with pytest.raises(MalformedCheckpoint, match="differ"):
        drop_aliases(tensors)


@pytest.mark.parametrize(
    ("model_type", "key", "canonical"),
    [
        ("distilbert", "distilbert.transformer.layer.2.output_adapters.adapters.x.a", "output_adapters.adapters.a"),
        ("distilbert", "transformer.layer.2.attention_adapters.attention_text_task_adapters.x.a", "adapters.a"),
        ("distilbert", "transformer.layer.2.ffn.lin1.loras.x.lora_A", "ffn.lin1.loras.lora_A"),
        ("bert", "bert.encoder.layer.2.attention.self.query.loras.x.gate.weight", "self.query.loras.gate.weight"),
        ("bert", "encoder.layer.2.reft_layer.refts.x.units.0.a", "reft_layer.refts.units.0.a"),
        (
            "deberta-v2",
            "deberta.encoder.layer.2.attention.self.prefix_tuning.prefix_gates.x.bias",
            "prefix_gates.bias",
        ),
        ("modernbert", "layers.2.attn.Wqkv.loras.x.lora_B", "attn.Wqkv.loras.lora_B"),
        ("modernbert", "model.layers.2.attn.Wqkv.loras.x.lora_B", "attn.Wqkv.loras.lora_B"),
    ],
)
def test_every_collection_of_every_family_is_stripped(model_type: str, key: str, canonical: str) -> None:
    [found] = adapter_tensors({key: ONE}, model_type, "x")
    assert found.endswith(f".{canonical}") and ".x." not in found
    assert layer_of(found) == 2


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("bert.prefix_tuning.prefix_tunings.x.self_prefix.control_trans", "prefix_tuning.prefix_tunings.self_prefix."),
        ("prompt_tuning.prompt_tunings.x.prompt_embedding.weight", "prompt_tuning.prompt_tunings.prompt_embedding."),
        ("bert.shared_parameters.x.phm_rule", "shared_parameters.phm_rule"),
    ],
)
def test_what_a_model_has_once_is_stripped(key: str, canonical: str) -> None:
    [found] = adapter_tensors({key: ONE}, "bert", "x")
    assert found.startswith(canonical) and layer_of(found) is None


def test_copies_of_the_prefix_store_are_left_out() -> None:
    key = "bert.encoder.layer.0.attention.self.prefix_tuning.pool.prefix_tunings.x.self_prefix.control_trans"
    assert adapter_tensors({key: ONE}, "bert", "x") == {}


def test_layers_of_groups_are_counted_through() -> None:
    keys = [
        f"encoder.albert_layer_groups.{g}.albert_layers.{i}.output_adapters.adapters.s" for g, i in ((0, 1), (1, 0))
    ]
    assert [layer_of(key, per_group=2) for key in keys] == [1, 2]
    assert list(without_layers(dict.fromkeys(keys, ONE), [2])) == keys[:1]


def test_only_the_named_head_is_taken() -> None:
    envelope = {"name": "a", "config": {"head_type": "tagging"}}
    head = read_head(envelope, {"heads.a.1.weight": ONE, "heads.ab.1.weight": ONE, "xheads.a.1.bias": ONE}, "x")
    assert head.name == "a" and list(head.tensors) == ["heads.1.weight"]


def test_labels_come_in_the_order_of_their_indices() -> None:
    config = canonical_head({"head_type": "tagging", "num_labels": 3, "label2id": {"b": 1, "a": 0}})
    assert config["labels"] == ("a", "b", "LABEL_2")


@pytest.mark.parametrize("label2id", [{"a": 3}, {"a": 0, "b": 0}, {"a": "0"}, {"a": -1}, {"a": True}])
def test_label_indices_that_make_no_sense_are_malformed(label2id: dict[str, object]) -> None:
    with pytest.raises(MalformedCheckpoint, match="label2id"):
        canonical_head({"head_type": "tagging", "num_labels": 3, "label2id": label2id})


@pytest.mark.parametrize(
    "config",
    [
        {"head_type": "image_classification"},
        {"head_type": "masked_lm", "num_labels": 2},
        {"head_type": "multiple_choice", "num_choices": 0},
        {"head_type": None},
        {},
        {"head_type": "tagging", "use_pooler": True},
        {"head_type": "classification", "num_labels": 0},
        {"head_type": "classification", "layers": "2"},
        {"head_type": "classification", "activation_function": "prelu"},
        {"head_type": "classification", "surprise": 1},
        {"head_type": "question_answering", "num_labels": 3},
    ],
)
def test_head_that_cannot_be_served_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedConfig, match="head_config"):
        canonical_head(config)


def test_static_head_of_bert_reads_the_pooler() -> None:
    envelope = {"config": None, "model_class": "BertForSequenceClassification", "model_type": "bert", "num_labels": 3}
    head = read_head(envelope, {"classifier.weight": ONE, "cls.predictions.bias": ONE}, "x")
    assert head.config["use_pooler"] and head.config["layers"] == 1 and head.config["num_labels"] == 3
    assert head.name == "x" and list(head.tensors) == ["heads.1.weight"]


@pytest.mark.parametrize(
    "model_class", ["BertForPreTraining", "RobertaForMultipleChoice", "RobertaForTokenClassification", None]
)
def test_static_head_of_another_class_is_refused_by_name(model_class: str | None) -> None:
    with pytest.raises(UnsupportedConfig, match=str(model_class)):
        read_head({"config": None, "model_class": model_class, "model_type": "bert"}, {}, "x")


@pytest.mark.parametrize(
    ("model_class", "model_type", "head_type"),
    [
        ("BertForMaskedLM", "bert", "masked_lm"),
        ("BertLMHeadModel", "bert", "causal_lm"),
        ("XLMRobertaForCausalLM", "xlm-roberta", "causal_lm"),
        ("ElectraForMultipleChoice", "electra", "multiple_choice"),
        ("DebertaV2ForSequenceClassification", "deberta-v2", "classification"),
        ("AlbertForMaskedLM", "albert", "masked_lm"),
    ],
)
def test_static_head_becomes_the_flexible_one(model_class: str, model_type: str, head_type: str) -> None:
    envelope = {"config": None, "model_class": model_class, "model_type": model_type, "num_labels": 3}
    config = read_head(envelope, {}, "x").config
    assert config["head_type"] == head_type and config.get("num_labels", 3) == 3
    assert config["activation_function"] == ("gelu_new" if model_type == "albert" else "gelu")
