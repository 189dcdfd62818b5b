"""Heads of classic model classes (`BertForSequenceClassification`, ...), rewritten as flexible heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from adapters_cache.families import FAMILIES
from server.errors import UnsupportedConfig

# flexible configuration, and module index -> name in the classic class
Layout: TypeAlias = tuple[Mapping[str, Any], Mapping[int, str]]

_POOLED = {"layers": 1, "use_pooler": True}
_BERT_LM = "cls.predictions"
# Two Linears on the first token: their names and the activation between them.
_TWO_LAYERS: Mapping[str, tuple[str, str, str]] = {
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "deberta-v2": ("pooler.dense", "gelu", "classifier"),
}
_TWO_LAYER_CHOICES: Mapping[str, tuple[str, str, str]] = {
    "distilbert": ("pre_classifier", "relu", "classifier"),
    "electra": ("sequence_summary.summary", "gelu", "classifier"),
    "deberta-v2": ("pooler.dense", "gelu", "classifier"),
}
# Dense, LayerNorm, decoder, and the activation after dense.
_LANGUAGE_MODELS: Mapping[str, tuple[str, str, str, str]] = {
    "bert": (f"{_BERT_LM}.transform.dense", f"{_BERT_LM}.transform.LayerNorm", f"{_BERT_LM}.decoder", "gelu"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu"),
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector", "gelu"),
    "electra": ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", "gelu"),
    "albert": ("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "gelu_new"),
}
_LIKE = {"xlm-roberta": "roberta", "deberta-v2": "bert"}
CAUSAL = {"BertLMHeadModel": "bert", "RobertaForCausalLM": "roberta", "XLMRobertaForCausalLM": "xlm-roberta"} | {
    "ElectraForCausalLM": "electra"
}


def static_head(envelope: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give configuration and tensors as a flexible head has them; what else is in the file is left out.

    Raises UnsupportedConfig for classes that are not known.
    """
    layout, sources = _layout(str(envelope.get("model_class")), str(envelope.get("model_type")))
    config = dict(layout)
    if config["head_type"] in ("classification", "tagging"):
        label2id = envelope.get("label2id")
        config["label2id"] = label2id
        config["num_labels"] = envelope.get("num_labels") or (len(label2id) if isinstance(label2id, dict) else 0) or 2
    tensors = {}
    for index, source in sources.items():
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" in state:
                tensors[f"heads.{index}.{kind}"] = state[f"{source}.{kind}"]
    return config, tensors


def _layout(model_class: str, model_type: str) -> Layout:
    family = FAMILIES.get(model_type)
    found: Layout | None = None
    if CAUSAL.get(model_class) == model_type:
        found = _language_model("causal_lm", model_type)
    elif family and family.static_class and model_class.startswith(family.static_class):
        found = _of_task(model_class.removeprefix(family.static_class), model_type)
    if found is None:
        raise UnsupportedConfig(
            f"the head of model_class {model_class[:100]!r} is not supported for model_type {model_type[:100]!r};"
            " supported are flexible heads and, of the families that AdapterHub converts, SequenceClassification,"
            " TokenClassification, QuestionAnswering, MultipleChoice, MaskedLM and CausalLM",
            field="head_config.model_class",
            value=model_class[:100],
        )
    return found


def _of_task(task: str, model_type: str) -> Layout | None:
    if task == "TokenClassification":
        return {"head_type": "tagging"}, {1: "classifier"}
    if task == "QuestionAnswering":
        return {"head_type": "question_answering"}, {1: "qa_outputs"}
    if task == "SequenceClassification":
        return _on_vector("classification", _TWO_LAYERS.get(model_type))
    if task == "MultipleChoice":
        return _on_vector("multiple_choice", _TWO_LAYER_CHOICES.get(model_type))
    return _language_model("masked_lm", model_type) if task == "MaskedLM" else None


def _on_vector(head_type: str, two_layers: tuple[str, str, str] | None) -> Layout:
    if two_layers is None:
        return {"head_type": head_type, **_POOLED}, {1: "classifier"}
    first, activation, last = two_layers
    return {"head_type": head_type, "layers": 2, "activation_function": activation}, {1: first, 4: last}


def _language_model(head_type: str, model_type: str) -> Layout | None:
    names = _LANGUAGE_MODELS.get(_LIKE.get(model_type, model_type))
    if names is None:
        return None
    dense, norm, decoder, activation = names
    return {"head_type": head_type, "activation_function": activation}, {0: dense, 2: norm, 3: decoder}
