"""The fields of each method's configuration, their defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters_cache.formats import fields as f
from adapters_cache.formats.fields import REQUIRED, Field, canonical

BOTTLENECK_FIELDS: Mapping[str, Field] = {
    "mh_adapter": Field(REQUIRED, f.boolean),
    "output_adapter": Field(REQUIRED, f.boolean),
    "cross_adapter": Field(False, f.boolean),
    "reduction_factor": Field(REQUIRED, f.reduction_factor),
    "non_linearity": Field(REQUIRED, f.activation),
    "original_ln_before": Field(False, f.boolean),
    "original_ln_after": Field(True, f.boolean),
    "ln_before": Field(False, f.boolean),
    "ln_after": Field(False, f.boolean),
    "residual_before_ln": Field(True, f.residual),
    "adapter_residual_before_ln": Field(False, f.boolean),
    "is_parallel": Field(False, f.boolean),
    "scaling": Field(1.0, f.scaling),
    "use_gating": Field(False, f.boolean),
    "inv_adapter": Field(None, f.one_of(None, "nice", "glow")),
    "inv_adapter_reduction_factor": Field(None, f.optional_number),
    "leave_out": Field([], f.layers),
    "phm_layer": Field(False, f.boolean),
    "phm_dim": Field(4, f.positive_int),
    "phm_rank": Field(1, f.positive_int),
    "factorized_phm_W": Field(True, f.boolean),
    "shared_W_phm": Field(False, f.boolean),
    "shared_phm_rule": Field(True, f.boolean),
    "factorized_phm_rule": Field(False, f.boolean),
    "phm_bias": Field(True, f.boolean),
}
# Fields that training alone reads, of any method.
TRAINING_ONLY = frozenset(
    (
        "learn_phm",
        "phm_c_init",
        "phm_init_range",
        "hypercomplex_nonlinearity",
        "init_weights",
        "init_weights_seed",
        "dropout",
        "stochastic_depth",
        "dtype",  # what weights are stored as; a file's tensors say so themselves
        "prompt_init",
        "prompt_init_text",
    )
)
LEFTOVERS = frozenset(("attention_type", "new_attention_norm", "config_id"))
# Fields about parts that encoders do not have.
DECODER_ONLY = frozenset(("encoder_prefix", "cross_prefix"))

LORA_FIELDS: Mapping[str, Field] = {
    "architecture": Field(REQUIRED, f.one_of("lora", "mtl_lora")),
    "selfattn_lora": Field(True, f.boolean),
    "intermediate_lora": Field(False, f.boolean),
    "output_lora": Field(False, f.boolean),
    "leave_out": Field([], f.layers),
    "attn_matrices": Field(["q", "v"], f.matrices),
    "r": Field(8, f.positive_int),
    "alpha": Field(8, f.number),
    "composition_mode": Field("add", f.one_of("add", "scale")),
    "use_gating": Field(False, f.boolean),
    "use_dora": Field(False, f.boolean),
    "vera_d": Field(None, f.float_only),
    "vera_b": Field(None, f.float_only),
}
MTL_LORA_FIELDS: Mapping[str, Field] = {
    **LORA_FIELDS,
    "n_up_projection": Field(1, f.positive_int),
    "task_specific_matrix_type": Field("singular_values", f.one_of("singular_values")),
    "weights_sharpness": Field(0.05, f.positive_number),
}
PREFIX_FIELDS: Mapping[str, Field] = {
    "architecture": Field(REQUIRED, f.one_of("prefix_tuning")),
    "leave_out": Field([], f.layers),
    "flat": Field(False, f.boolean),
    "prefix_length": Field(30, f.positive_int),
    "bottleneck_size": Field(512, f.positive_int),
    "non_linearity": Field("tanh", f.plain_activation),
    "use_gating": Field(False, f.boolean),
    "shared_gating": Field(True, f.boolean),
}
PROMPT_FIELDS: Mapping[str, Field] = {
    "architecture": Field(REQUIRED, f.one_of("prompt_tuning")),
    "prompt_length": Field(10, f.positive_int),
    "combine": Field("prefix", f.one_of("prefix", "prefix_after_bos")),
}
REFT_FIELDS: Mapping[str, Field] = {
    "architecture": Field(REQUIRED, f.one_of("reft")),
    "layers": Field(REQUIRED, f.all_or_layers),
    "prefix_positions": Field(3, f.count),
    "suffix_positions": Field(0, f.count),
    "r": Field(1, f.positive_int),
    "orthogonality": Field(REQUIRED, f.boolean),
    "tied_weights": Field(False, f.boolean),
    "non_linearity": Field(None, f.optional_activation),
    "output_reft": Field(True, f.boolean),
    # no file of the library's holds it, and the library itself would not read it: an explicit false makes a DiReFT
    "subtract_projection": Field(True, f.boolean),
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A method's fields, and those that are dropped because they change no answer."""

    fields: Mapping[str, Field]
    ignored: frozenset[str] = TRAINING_ONLY | LEFTOVERS | DECODER_ONLY

    def read(self, config: Mapping[str, Any], *, tolerates: bool) -> dict[str, Any]:
        """tolerates: drop fields that nobody knows. Raises UnsupportedConfig naming the field and its value."""
        known = {
            name: value
            for name, value in config.items()
            if name not in self.ignored and (name in self.fields or not tolerates)
        }
        return canonical(self.fields, known, "config")


SCHEMAS: Mapping[str | None, Schema] = {
    None: Schema(BOTTLENECK_FIELDS),
    "lora": Schema(LORA_FIELDS),
    "mtl_lora": Schema(MTL_LORA_FIELDS),
    "prefix_tuning": Schema(PREFIX_FIELDS),
    "prompt_tuning": Schema(PROMPT_FIELDS),
    "reft": Schema(REFT_FIELDS),
}
