"""Random AdapterHub checkpoints on disk, for any small base: every weight is non-trivial."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters_cache.families import family_of
from adapters_cache.formats.adapterhub import ADAPTER_FILES, HEAD_FILES, VERSION, write_checkpoint
from adapters_cache.formats.checkpoint import Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.heads import canonical_head
from adapters_cache.formats.safe_file import read_safetensors
from adapters_cache.lower_bottleneck import width_of
from server.core import BaseInfo
from server.primitives import SiteKind

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
HEADS: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {"head_type": "classification", "num_labels": 3},
    {"head_type": "classification", "num_labels": 2, "layers": 1, "use_pooler": True},
    {"head_type": "classification", "num_labels": 1},
    {"head_type": "multilabel_classification", "num_labels": 4},
    {"head_type": "tagging", "num_labels": 5},
    {"head_type": "question_answering"},
)


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
        canonical = canonical_config({"config": raw, "version": VERSION}, has_invertible=False)
        canonical["leave_out"] = sorted({*canonical["leave_out"], *leave_out})
        tensors = {key: value.to(dtype) for key, value in _bottlenecks(base, canonical, generator).items()}
    made_head = _head(name, base.hidden_size, head, generator, dtype) if head is not None else None
    return Checkpoint(name, base.model_type, base.hidden_size, canonical, tensors, made_head, base.fingerprint)


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
    write_checkpoint(path, checkpoint, base)
    if as_bin:
        for safe, pickled in (ADAPTER_FILES, HEAD_FILES):
            to_bin(path / safe, path / pickled)
    return checkpoint


def make_variant(path: Path, base: BaseInfo, index: int, *, as_bin: bool = False) -> Checkpoint:
    """Write adapter number `index` of an endless series over CONFIGS x HEADS, each with weights of its own."""
    return make_adapter(
        path,
        base,
        config=CONFIGS[index % len(CONFIGS)],
        head=HEADS[index // len(CONFIGS) % len(HEADS)],
        seed=index,
        leave_out=[0] if index % 5 == 4 else [],
        as_bin=as_bin,
    )


def to_bin(safe: Path, pickled: Path) -> None:
    """Replace a safetensors file, if there is one, by the pickle that older libraries write."""
    if safe.exists():
        torch.save(read_safetensors(safe, 1 << 30), pickled)
        safe.unlink()


def _bottlenecks(base: BaseInfo, config: Mapping[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    kinds = {SiteKind.ATTENTION: config["mh_adapter"], SiteKind.OUTPUT: config["output_adapter"]}
    for layer in range(base.num_layers):
        if layer in config["leave_out"]:
            continue
        width = width_of(config["reduction_factor"], layer, base.hidden_size)
        for kind in (kind for kind, is_present in kinds.items() if is_present):
            path = family_of(base.model_type).site(layer, kind)
            for key, shape in _shapes(config, width, base.hidden_size).items():
                tensors[f"{path}.{key}"] = _random(shape, generator, around=1.0 if "norm" in key else 0.0)
    return tensors


def _shapes(config: Mapping[str, Any], width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"adapter_down.{int(config['ln_before'])}.weight": (width, hidden),
        f"adapter_down.{int(config['ln_before'])}.bias": (width,),
        "adapter_up.weight": (hidden, width),
        "adapter_up.bias": (hidden,),
    }
    for side in ("before", "after"):
        if config[f"ln_{side}"]:
            shapes |= {f"adapter_norm_{side}.{kind}": (hidden,) for kind in ("weight", "bias")}
    if isinstance(config["scaling"], str):
        shapes["scaling"] = (1 if config["scaling"] == "learned" else hidden,)
    if config["use_gating"]:
        shapes |= {"gate.weight": (1, hidden), "gate.bias": (1,)}
    if config["non_linearity"] == "prelu":
        shapes["non_linearity.f.weight"] = (1,)
    return shapes


def _head(
    name: str, hidden: int, config: Mapping[str, Any], generator: torch.Generator, dtype: torch.dtype
) -> HeadCheckpoint:
    canonical = canonical_head(config)
    stride = 2 if canonical["activation_function"] is None else 3
    tensors = {}
    for number in range(canonical["layers"]):
        is_last = number == canonical["layers"] - 1
        size = canonical["num_labels"] if is_last else hidden
        tensors[f"heads.{1 + stride * number}.weight"] = _random((size, hidden), generator).to(dtype)
        if canonical["bias"] or not is_last:
            tensors[f"heads.{1 + stride * number}.bias"] = _random((size,), generator).to(dtype)
    return HeadCheckpoint(name, canonical, tensors)


def _random(shape: tuple[int, ...], generator: torch.Generator, around: float = 0.0) -> Tensor:
    return around + SCALE * torch.randn(shape, generator=generator)
