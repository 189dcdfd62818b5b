"""PEFT configurations -> the canonical one. Fields that only matter for training are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters_cache.formats import fields as f
from adapters_cache.formats.fields import REQUIRED, Field, canonical, refusal
from adapters_cache.formats.peft_targets import patterns, safe_regex

LORA, IA3, PREFIX, PROMPT = "LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING"
TASKS = (None, "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
# What a checkpoint says about its making: no part of what it computes.
PROVENANCE = frozenset(("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"))
TRAINING_ONLY: Mapping[str, frozenset[str]] = {
    # fan_in_fan_out is for Conv1D; on a Linear the library itself switches it off
    LORA: frozenset(
        (
            "lora_dropout",
            "fan_in_fan_out",
            "megatron_core",
            "qalora_group_size",
            "ensure_weight_tying",
            "eva_config",
            "loftq_config",
            "corda_config",
            "lora_ga_config",
            "merge_weights",
        )
    ),
    IA3: frozenset(("fan_in_fan_out", "init_ia3_weights")),
    PREFIX: frozenset(("encoder_hidden_size", "prefix_projection", "init_weights")),
    PROMPT: frozenset(("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs")),
}
# Initialisations that leave the base's weights alone. The others subtract something from them first.
INITS = (True, False, "gaussian", "eva", "orthogonal")
# Fields of LoRA whose every other value changes what is computed in ways that are not served.
UNSUPPORTED_LORA = (
    "alora_invocation_tokens",
    "arrow_config",
    "enable_lora",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)


def _unset(field: str, value: Any) -> None:
    if value not in (None, False, [], {}):
        raise refusal(field, value, "null: this variant is not served")


def _init(field: str, value: Any) -> None:
    """Checked, then forgotten: the weights are what training made of them."""
    if not isinstance(value, bool | str) or value not in INITS:
        raise refusal(field, value, f"one of {', '.join(map(str, INITS))}: others change the base's own weights")


def _targets(field: str, value: Any) -> str | list[str]:
    """Names that modules end in, sorted, or a regular expression."""
    if isinstance(value, str):
        return value.lower() if value.lower() == "all-linear" else safe_regex(field, value)
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise refusal(field, value, "a list of module names or a regular expression")
    return sorted(set(value))


def _optional_targets(field: str, value: Any) -> str | list[str] | None:
    return None if value in (None, []) else _targets(field, value)


def _layer_numbers(field: str, value: Any) -> list[int] | None:
    if value in (None, []):
        return None
    return f.layers(field, [value] if type(value) is int else value)


def _layer_names(field: str, value: Any) -> list[str] | None:
    if value in (None, [], ""):
        return None
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise refusal(field, value, "names of lists of layers")
    return list(names)


def _modules(field: str, value: Any) -> list[str]:
    names = [] if value is None else value
    if not isinstance(names, list) or not all(
        isinstance(name, str) and name.replace(".", "").isidentifier() for name in names
    ):
        raise refusal(field, value, "a list of module names")
    return sorted(set(names))


def _positive(field: str, value: Any) -> int | float:
    return f.positive_number(field, value)


_MODULES: dict[str, Field] = {
    "task_type": Field(None, f.one_of(*TASKS)),
    "modules_to_save": Field(None, _modules),
}
_TARGETS: dict[str, Field] = {
    "target_modules": Field(REQUIRED, _targets),
    "exclude_modules": Field(None, _optional_targets),
}
_PROMPT_LEARNING: dict[str, Field] = _MODULES | {
    "num_virtual_tokens": Field(REQUIRED, f.positive_int),
    "token_dim": Field(REQUIRED, f.positive_int),
    "num_transformer_submodules": Field(1, f.positive_int),
    "num_attention_heads": Field(REQUIRED, f.positive_int),
    "num_layers": Field(REQUIRED, f.positive_int),
}
FIELDS: Mapping[str, Mapping[str, Field]] = {
    LORA: {
        **_MODULES,
        **_TARGETS,
        "r": Field(8, f.positive_int),
        "lora_alpha": Field(8, _positive),
        "use_rslora": Field(False, f.boolean),
        "use_dora": Field(False, f.boolean),
        "lora_bias": Field(False, f.boolean),
        "rank_pattern": Field({}, patterns(f.positive_int)),
        "alpha_pattern": Field({}, patterns(_positive)),
        "layers_to_transform": Field(None, _layer_numbers),
        "layers_pattern": Field(None, _layer_names),
        "bias": Field("none", f.one_of("none")),
        "init_lora_weights": Field(True, _init),
        **{name: Field(None, _unset) for name in UNSUPPORTED_LORA},
    },
    IA3: {**_MODULES, **_TARGETS, "feedforward_modules": Field(REQUIRED, _targets)},
    PREFIX: _PROMPT_LEARNING,
    PROMPT: _PROMPT_LEARNING,
}


def canonical_peft(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Give the canonical configuration of PEFT's `adapter_config.json`. Raises UnsupportedConfig naming the field."""
    kind = raw.get("peft_type")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise refusal("adapter_config.peft_type", kind, f"one of {', '.join(FIELDS)}")
    ignored = PROVENANCE | TRAINING_ONLY[kind] | {"peft_type", "runtime_config"}
    known = {name: value for name, value in raw.items() if name not in ignored}
    config = canonical(FIELDS[kind], known, "adapter_config")
    if config.get("use_dora") and config["lora_bias"]:
        raise refusal("adapter_config.lora_bias", True, "false together with use_dora")
    if config.get("num_transformer_submodules", 1) != 1:
        raise refusal(
            "adapter_config.num_transformer_submodules", config["num_transformer_submodules"], "1: an encoder"
        )
    return {"peft_type": kind} | {name: value for name, value in config.items() if value is not None}
