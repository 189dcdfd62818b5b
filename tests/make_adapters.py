"""Random AdapterHub checkpoints on disk, for any small base: every weight is non-trivial.

Keys and shapes are those that lowering asks for; that they are AdapterHub's is for the recorded cases to hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters_cache.draft import Draft
from adapters_cache.families import family_of
from adapters_cache.flat import FlatBuilder, TensorSource
from adapters_cache.formats.adapterhub import ADAPTER_FILES, HEAD_FILES, VERSION, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.fusions import FUSION_FILES, fusion_config
from adapters_cache.formats.heads import canonical_head
from adapters_cache.formats.safe_file import read_safetensors
from adapters_cache.lower_fusion import lower_fusion
from adapters_cache.lower_head import take_head
from adapters_cache.lowering import METHODS
from server.core import BaseInfo
from server.primitives import Projection, SiteKind

SCALE = 0.3  # of random weights: moves answers by far more than rounding does

CONFIGS: tuple[Mapping[str, Any] | str, ...] = (
    "seq_bn[reduction_factor=4]",
    "double_seq_bn[reduction_factor=8]",
    "par_bn[reduction_factor=4]",
    "scaled_par_bn[reduction_factor=2]",
    "pfeiffer[reduction_factor=16,non_linearity=gelu,scaling=channel,residual_before_ln=false,original_ln_after=false]",
    "seq_bn[reduction_factor=4,ln_before=true,non_linearity=tanh]",
    "houlsby[reduction_factor=4,ln_after=true,scaling=learned]",
    "seq_bn[reduction_factor=4,residual_before_ln=post_add,non_linearity=prelu]",
    "double_seq_bn[reduction_factor=4,use_gating=true]",
)
_ALL_LORA = "intermediate_lora=true,output_lora=true"
METHOD_CONFIGS: tuple[Mapping[str, Any] | str, ...] = (
    "lora[r=4,alpha=6]",
    f"lora[r=2,use_gating=true,{_ALL_LORA}]",
    {"architecture": "lora", "r": 3, "attn_matrices": ["q", "k", "v"], "output_lora": True},
    "ia3[alpha=2,output_lora=true]",
    "ia3[use_gating=true]",
    "seq_bn_inv[reduction_factor=4]",
    "loreft[r=2,prefix_positions=2,suffix_positions=3]",
    "noreft[r=3,tied_weights=true,suffix_positions=1,non_linearity=tanh]",
    "direft[r=1]",
    {"architecture": "reft", "layers": [1], "orthogonality": False, "prefix_positions": 0, "suffix_positions": 2},
    "compacter[reduction_factor=4,phm_dim=2]",
    "compacter++[reduction_factor=4,phm_dim=4,shared_phm_rule=false,factorized_phm_rule=true,phm_bias=false]",
    "compacter[reduction_factor=8,phm_dim=2,shared_W_phm=true]",
    "compacter++[reduction_factor=4,phm_dim=2,phm_rank=2,factorized_phm_W=false]",
    "seq_bn[reduction_factor=8]|lora[r=2]",
    "double_seq_bn[reduction_factor=8]|noreft[r=2]|ia3",
)
# Families whose q, k and v are one Linear do not take these.
SEPARATE_CONFIGS: tuple[Mapping[str, Any] | str, ...] = (
    f"dora[r=4,alpha=6,{_ALL_LORA}]",
    "vera[r=4,alpha=6]",
    "dvora[r=4,alpha=6]",
    "mtl_lora[r=4,n_up_projection=3,weights_sharpness=0.7]",
    "prefix_tuning[prefix_length=3,bottleneck_size=5]",
    "prefix_tuning_flat[prefix_length=4,use_gating=true]",
    "prefix_tuning_flat[prefix_length=2,use_gating=true,shared_gating=false]",
    "prompt_tuning[prompt_length=3]",
    "prompt_tuning[prompt_length=2,combine=prefix_after_bos]",
    "prefix_tuning[prefix_length=3,bottleneck_size=5]|par_bn[reduction_factor=4]",
    "prefix_tuning_flat[prefix_length=3,use_gating=true]|seq_bn[reduction_factor=4,use_gating=true]"
    "|lora[r=2,alpha=2,use_gating=true]",
)
HEADS: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {"head_type": "classification", "num_labels": 3},
    {"head_type": "classification", "num_labels": 2, "layers": 1, "use_pooler": True},
    {"head_type": "classification", "num_labels": 1},
    {"head_type": "multilabel_classification", "num_labels": 4},
    {"head_type": "tagging", "num_labels": 5},
    {"head_type": "question_answering"},
)
OTHER_HEADS: tuple[Mapping[str, Any], ...] = (
    {"head_type": "multiple_choice"},
    {"head_type": "masked_lm"},
    {"head_type": "masked_lm", "layers": 2, "activation_function": None, "layer_norm": False, "bias": False},
    {"head_type": "causal_lm"},
    {"head_type": "dependency_parsing", "num_labels": 3},
)


def configs_for(base: BaseInfo) -> tuple[Mapping[str, Any] | str, ...]:
    """Configurations of every method that a base takes."""
    family = family_of(base.model_type)
    if family.is_plugin:
        return tuple(c for c in CONFIGS if "original_ln_after=false" not in c) + METHOD_CONFIGS
    return CONFIGS + METHOD_CONFIGS + SEPARATE_CONFIGS


class RandomWeights:
    """Weights of a base that is not there."""

    def __init__(self, base: BaseInfo, seed: int = 0) -> None:
        self._base, self._seed = base, seed

    def projection_weight(self, layer: int, projection: Projection) -> Tensor:
        hidden, middle = self._base.hidden_size, self._base.intermediate_size
        shapes = {
            Projection.QKV: (3 * hidden, hidden),
            Projection.INTERMEDIATE: (middle * family_of(self._base.model_type).intermediate_factor, hidden),
            Projection.OUTPUT: (hidden, middle),
        }
        return self._random(f"{layer} {projection.value}", shapes.get(projection, (hidden, hidden)))

    def projection_bias(self, layer: int, projection: Projection) -> Tensor | None:
        return self._random(f"{layer} {projection.value} bias", self.projection_weight(layer, projection).shape[:1])

    def input_embeddings(self) -> Tensor:
        size = self._base.embedding_size or self._base.hidden_size
        return self._random("embeddings", (self._base.vocab_size, size))

    def _random(self, what: str, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed + sum(what.encode()))
        return SCALE * torch.randn(*shape, generator=generator)


class InventedTensors(TensorSource):
    """Whatever tensor is asked for, random and the same for one key; `made` keeps them."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__({})
        self.made: dict[str, Tensor] = {}
        self._generator = generator

    def take(self, key: str, *shape: int) -> Tensor:
        assert key not in self.made, f"{key} is asked for twice"
        return self.made.setdefault(key, self._invent(key, shape))

    def share(self, name: str, *shape: int) -> Tensor:
        key = f"shared_parameters.{name}"
        return self.made[key] if key in self.made else self.take(key, *shape)

    def _invent(self, key: str, shape: tuple[int, ...]) -> Tensor:
        value = SCALE * torch.randn(shape, generator=self._generator)
        if "norm" in key or key.endswith(("m.weight", "task_specific.values")) or shape[1:] == (1,):
            return 1.0 + value  # factors: of LayerNorms, of IA3, of DoRA
        if key.endswith(".original"):  # signs on the diagonal, as torch leaves them
            return value.fill_diagonal_(1.0)
        return torch.linalg.qr(value)[0].contiguous() if key.endswith(".base") else value


def random_checkpoint(
    base: BaseInfo,
    *,
    config: str | Mapping[str, Any] | None = "seq_bn",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str = "adapter",
    leave_out: Collection[int] = (),
    dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Give an adapter for `base`.

    config  a name with overrides (`seq_bn[reduction_factor=8]`) or an object; None for a head alone
    head    a flexible head's configuration; what is missing takes AdapterHub's defaults
    """
    generator = torch.Generator().manual_seed(seed)
    canonical, tensors = None, {}
    if config is not None:
        raw = config if isinstance(config, str) else dict(config)
        canonical = canonical_config({"config": raw, "version": VERSION}, has_invertible=True)
        for member in canonical.get("configs", [canonical]):
            if "leave_out" in member:
                member["leave_out"] = sorted({*member["leave_out"], *leave_out})
        tensors = _tensors(base, canonical, generator)
    made_head = random_head(name, base, head, generator) if head is not None else None
    checkpoint = Checkpoint(name, base.model_type, base.hidden_size, canonical, tensors, made_head, base.fingerprint)
    return _cast(checkpoint, dtype)


def random_fusion(
    base: BaseInfo,
    members: Sequence[str],
    *,
    config: str | Mapping[str, Any] = "dynamic",
    kinds: Collection[SiteKind] = (SiteKind.OUTPUT,),
    seed: int = 0,
    name: str | None = None,
) -> Checkpoint:
    """Give a fusion of `members` for `base`, at sites of `kinds` in every layer."""
    canonical = fusion_config({"config": config, "version": VERSION, "adapter_names": list(members)})
    draft, source = Draft(base, None, {}), InventedTensors(torch.Generator().manual_seed(seed))
    # lowering looks for the kinds of site among the keys that there are
    marks = {f"{draft.layer(0)}.{draft.family.sites[kind]}.adapter_fusion_layer.": torch.empty(0) for kind in kinds}
    source.keys = marks.keys  # type: ignore[method-assign]
    draft.source = source
    lower_fusion(canonical, draft)
    return Checkpoint(
        name or ",".join(members),
        base.model_type,
        base.hidden_size,
        canonical,
        source.made,
        base_fingerprint=base.fingerprint,
    )


def random_head(
    name: str, base: BaseInfo, config: Mapping[str, Any], generator: torch.Generator | None = None
) -> HeadCheckpoint:
    canonical = canonical_head(config)
    source = InventedTensors(generator or torch.Generator().manual_seed(0))
    take_head(name, canonical, base, source, FlatBuilder())
    return HeadCheckpoint(name, canonical, source.made)


def make_adapter(
    path: Path,
    base: BaseInfo,
    *,
    config: str | Mapping[str, Any] | None = "seq_bn",
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
    name: str | None = None,
    leave_out: Collection[int] = (),
    dtype: torch.dtype = torch.float32,
    as_bin: bool = False,
) -> Checkpoint:
    """Write a random adapter to the folder `path`, by default under the folder's name; `as_bin` writes pickles."""
    checkpoint = random_checkpoint(
        base, config=config, head=head, seed=seed, name=name or path.name, leave_out=leave_out, dtype=dtype
    )
    return _write(path, checkpoint, base, as_bin)


def make_fusion(
    path: Path, base: BaseInfo, members: Sequence[str], *, as_bin: bool = False, **options: Any
) -> Checkpoint:
    """Write a random fusion (`random_fusion`) to the folder `path`."""
    return _write(path, random_fusion(base, members, **options), base, as_bin)


def make_variant(
    path: Path,
    base: BaseInfo,
    index: int,
    *,
    configs: Sequence[Mapping[str, Any] | str] | None = None,
    heads: Sequence[Mapping[str, Any] | None] = HEADS,
    as_bin: bool = False,
) -> Checkpoint:
    """Write adapter number `index` of an endless series over configurations x heads, each with weights of its own.

    configs  by default those of every method that the base takes
    """
    configs = configs_for(base) if configs is None else configs
    return make_adapter(
        path,
        base,
        config=configs[index % len(configs)],
        head=heads[index // len(configs) % len(heads)],
        seed=index,
        leave_out=[0] if index % 5 == 4 else [],
        as_bin=as_bin,
    )


def to_bin(safe: Path, pickled: Path) -> None:
    """Replace a safetensors file, if there is one, by the pickle that older libraries write."""
    if safe.exists():
        torch.save(read_safetensors(safe, 1 << 30), pickled)
        safe.unlink()


def _write(path: Path, checkpoint: Checkpoint, base: BaseInfo, as_bin: bool) -> Checkpoint:
    write_checkpoint(path, checkpoint, base)
    if as_bin:
        for safe, pickled in (ADAPTER_FILES, HEAD_FILES, FUSION_FILES):
            to_bin(path / safe, path / pickled)
    return checkpoint


def _tensors(base: BaseInfo, config: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    source = InventedTensors(generator)
    draft = Draft(base, RandomWeights(base), {})
    draft.source = source
    for member in config.get("configs", [config]):
        METHODS[member.get("architecture")](member, draft)
    return source.made


def _cast(checkpoint: Checkpoint, dtype: torch.dtype) -> Checkpoint:
    for tensors in (checkpoint.tensors, checkpoint.head.tensors if checkpoint.head else {}):
        assert isinstance(tensors, dict)
        tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})
    return checkpoint
