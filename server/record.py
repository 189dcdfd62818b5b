"""Record cases of one's own adapters: what the engine answers today, each row alone, to compare with tomorrow."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from server.config import ModelConfig
from server.core import Adapter, Encoding, Parameters, TextInput, TokenInput
from server.errors import InvalidInput
from server.model.base import Base, load_base
from server.tokenizer import Tokenizer
from server.verify import answer_alone, head_outputs

NUM_RANDOM_ROWS = 5
MAX_RANDOM_TOKENS = 32
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
INPUTS = "inputs.safetensors"


def record(root: Path, model: ModelConfig, adapters: Path, texts: Sequence[str], seed: int) -> int:
    """Write a directory of cases for every adapter in `adapters` and for the base alone; how many were written.

    texts    inputs of every case; random tokens where there are none
    raises   InvalidInput where `root` is in use or `adapters` holds none
    """
    if (root / "manifest.json").exists():
        raise InvalidInput(f"{root} already holds recorded cases; choose another folder")
    folders = sorted(path for path in adapters.iterdir() if path.is_dir() and is_adapter(path))
    if not folders:
        raise InvalidInput(f"{adapters} holds no adapters, that is sub-folders with an adapter_config.json")
    base = load_base(model)
    encodings = _encode(base, texts) if texts else _random_rows(base, seed)
    (root / "outputs").mkdir(parents=True)
    save_file(_padded([e.input_ids for e in encodings], [e.token_type_ids for e in encodings]), root / INPUTS)
    cases = [_case(root, base, model.base, None, encodings, None)]
    for folder in folders:
        adapter = build_adapter(read_checkpoint(folder), base.info, base.dtype)
        shutil.copytree(folder, root / "adapters" / folder.name)
        cases.append(_case(root, base, model.base, folder.name, encodings, adapter))
    manifest = {"format": 1, "bases": {base.info.name: {"model_type": base.info.model_type}}, "cases": cases}
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return len(cases)


def _encode(base: Base, texts: Sequence[str]) -> list[Encoding]:
    tokenizer = Tokenizer(base.tokenizer_path, base.info, num_threads=1)
    try:
        return asyncio.run(tokenizer.encode([TextInput(text) for text in texts], Parameters()))
    finally:
        tokenizer.close()


def _random_rows(base: Base, seed: int) -> list[Encoding]:
    rng = random.Random(seed)
    longest = min(MAX_RANDOM_TOKENS, base.info.max_tokens)
    rows = [tuple(rng.choices(range(base.info.vocab_size), k=rng.randint(1, longest))) for _ in range(NUM_RANDOM_ROWS)]
    return [Encoding(ids, (0,) * len(ids), TokenInput(ids)) for ids in rows]


def _padded(ids: Sequence[tuple[int, ...]], types: Sequence[tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    longest = max(map(len, ids))
    filled = {
        name: np.zeros((len(ids), longest), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    for row, (own_ids, own_types) in enumerate(zip(ids, types, strict=True)):
        filled["input_ids"][row, : len(own_ids)] = own_ids
        filled["attention_mask"][row, : len(own_ids)] = 1
        filled["token_type_ids"][row, : len(own_ids)] = own_types
    return filled


def _case(
    root: Path, base: Base, base_name: str, name: str | None, encodings: Sequence[Encoding], adapter: Adapter | None
) -> dict[str, Any]:
    """Answer every row alone, store what came out, and describe it."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for row, output in enumerate(answer_alone(base, encodings, adapter)):
        assert output.hidden is not None
        tensors[f"row{row}.last_hidden_state"] = output.hidden[None]
        if adapter is not None and adapter.spec.head is not None:
            tensors |= {f"row{row}.{key}": value[None] for key, value in head_outputs(adapter, output.values).items()}
    path = f"outputs/{name or 'base'}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, root / path)
    return {
        "id": f"{base.info.name}/{name or 'base'}",
        "base": base.info.name,
        "base_dir": base_name,
        "adapters": [{"name": name, "dir": f"adapters/{name}"}] if name else [],
        "fusions": [],
        "heads": [],
        "composition": name,
        "head": name if adapter is not None and adapter.spec.head is not None else None,
        "inputs": INPUTS,
        "outputs": path,
        "tags": [adapter.manifest.method if adapter else "base"],
        "methods": [adapter.manifest.method] if adapter else [],
        "tensors": {key: list(value.shape) for key, value in tensors.items()},
        "tolerance": TOLERANCE,
    }
