"""What both recorders share: small random bases, inputs, and the manifest. Needs torch, transformers, safetensors."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel

ROOT = Path(__file__).parents[1] / "recorded"
VOCAB = 53
LENGTHS = (9, 4, 7, 6)  # of the rows of a batch
NOISE = 1e-4  # rows that differ by more when they run alone depend on padding
_SHAPE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=44)
_COMMON = dict(vocab_size=VOCAB, max_position_embeddings=30)
_WIDE = dict(hidden_size=20, num_hidden_layers=3, num_attention_heads=2, intermediate_size=36)
BASES: dict[str, dict[str, Any]] = {
    "bert": dict(_COMMON, **_SHAPE, type_vocab_size=2),
    "roberta": dict(_COMMON, **_WIDE, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2),
    "distilbert": dict(_COMMON, dim=24, n_layers=2, n_heads=3, hidden_dim=44),
    "electra": dict(_COMMON, **_SHAPE, embedding_size=16, type_vocab_size=2),
    "albert": dict(
        _COMMON, **(_SHAPE | {"num_hidden_layers": 4}), num_hidden_groups=2, embedding_size=16, type_vocab_size=2
    ),
    "deberta-v2": dict(
        _COMMON,
        **_SHAPE,
        type_vocab_size=0,
        relative_attention=True,
        position_buckets=6,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
    ),
    "modernbert": dict(
        _COMMON,
        **(_SHAPE | {"num_attention_heads": 2}),  # heads of 12: rotary embeddings want an even size
        pad_token_id=0,
        bos_token_id=3,
        cls_token_id=3,
        eos_token_id=2,
        sep_token_id=2,
        global_attn_every_n_layers=2,
        local_attention=6,
        attention_bias=False,
    ),
}


def make_bases() -> None:
    for seed, (model_type, shape) in enumerate(BASES.items()):
        torch.manual_seed(1000 + seed)
        model = AutoModel.from_config(AutoConfig.for_model(model_type, **shape))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                around = 1.0 if _is_norm(name) and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.2 * torch.randn_like(parameter))
        model.save_pretrained(ROOT / "bases" / model_type)


def _is_norm(name: str) -> bool:
    return "norm" in name.lower()


def make_inputs() -> None:
    for seed, (model_type, shape) in enumerate(BASES.items()):
        rng = random.Random(2000 + seed)
        pad = shape.get("pad_token_id", 0)
        main = _rows(LENGTHS, rng, pad, shape.get("type_vocab_size", 0))
        _save(f"{model_type}.main", main)
        if model_type in ("bert", "roberta"):
            flat = _rows((8, 5, 4, 7, 6, 8), rng, pad, shape["type_vocab_size"])
            _save(f"{model_type}.mc", {name: tensor.reshape(3, 2, 8) for name, tensor in flat.items()})
            starts = torch.tensor([[2, 4, 5, 8], [2, 3, pad, pad], [3, 4, 6, pad], [2, 4, 5, pad]])
            _save(f"{model_type}.dp", main | {"word_starts": starts})
            _save(f"{model_type}.full", {name: tensor[:1].repeat(4, 1) for name, tensor in main.items()})


def _rows(lengths: tuple[int, ...], rng: random.Random, pad: int, num_types: int) -> dict[str, Tensor]:
    size = (len(lengths), max(lengths))
    ids, mask, types = torch.full(size, pad), torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([rng.randrange(5, VOCAB) for _ in range(length)])
        mask[row, :length] = 1
        if num_types > 1:
            types[row, length // 2 : length] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def _save(name: str, tensors: dict[str, Tensor]) -> None:
    path = ROOT / "inputs" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def row(inputs: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """One row alone, without padding."""
    length = int(inputs["attention_mask"][number].sum())
    return {
        name: tensor[number : number + 1, :length] if name != "word_starts" else tensor[number : number + 1]
        for name, tensor in inputs.items()
    }


def distance(batch: dict[str, Tensor], alone: list[dict[str, Tensor]], inputs: dict[str, Tensor]) -> float:
    """How much real tokens of a batch differ from the same rows alone; infinite where lengths do not match."""
    worst = 0.0
    for number, outputs in enumerate(alone):
        length = int(inputs["attention_mask"][number].sum())
        for name, tensor in outputs.items():
            own = batch[name][number : number + 1]
            if own.ndim > 2 or name in ("start_logits", "end_logits"):
                if tensor.shape[1] != length:
                    return math.inf
                own = own[:, :length]
            worst = max(worst, float((own - tensor).abs().max()))
    return worst


def write_case(case: dict[str, Any], outputs: dict[str, Tensor], noise: float) -> dict[str, Any]:
    path = f"outputs/{case['id']}.safetensors"
    (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.float().contiguous() for name, tensor in outputs.items()}, ROOT / path)
    atol = max(2e-5, round(8 * noise, 6))
    return case | {
        "base_dir": f"bases/{case['base']}",
        "outputs": path,
        "tensors": {name: list(tensor.shape) for name, tensor in outputs.items()},
        "tolerance": {"atol": atol, "rtol": 1e-4},
    }


def write_manifest(generator: dict[str, str], cases: list[dict[str, Any]], unsupported: list[dict[str, str]]) -> None:
    """Replace the cases of one generator, told by its name, and keep those of others."""
    path = ROOT / "manifest.json"
    manifest = json.loads(path.read_text()) if path.exists() else {"format": 1, "generators": {}, "cases": []}
    name = next(iter(generator))
    manifest["generators"][name] = generator
    manifest.setdefault("unsupported", {})[name] = [
        entry | {"reason": re.sub(r" object at 0x\w+", "", entry["reason"])[:100]} for entry in unsupported
    ]
    manifest["cases"] = [case for case in manifest["cases"] if case["generator"] != name]
    manifest["cases"] += [case | {"generator": name} for case in cases]
    manifest["bases"] = {base: {"dir": f"bases/{base}", "model_type": base} for base in BASES}
    path.write_text(json.dumps(manifest, indent=1) + "\n")
