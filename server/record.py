"""Record cases of one's own adapters: what the engine answers today, each row alone, to compare with tomorrow."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import is_adapter, read_checkpoint
from server.cases import FORMAT, MANIFEST
from server.compare import head_outputs, hidden_outputs
from server.config import ModelConfig
from server.core import Adapter, Encoding, Parameters, TextInput, TokenInput, own_head
from server.errors import AdapterdError, InvalidInput
from server.model.base import Base, load_base
from server.tokenizer import Tokenizer
from server.verify import answer_alone

NUM_RANDOM_ROWS = 5
MAX_RANDOM_TOKENS = 32
TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}
INPUTS = "inputs.safetensors"


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many cases were written, and the folders that were left out with the reason of each."""

    num_cases: int
    left_out: Mapping[str, str]


def record(root: Path, model: ModelConfig, adapters: Path, texts: Sequence[str], seed: int) -> Recorded:
    """Write a directory of cases for every adapter in `adapters` and for the base alone, whole or not at all.

    texts    inputs of every case; random tokens where there are none
    raises   InvalidInput where `root` is in use or `adapters` holds none that can be served
    """
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise InvalidInput(f"{root} is in use; choose another folder")
    if not adapters.is_dir():
        raise InvalidInput(f"{adapters} is not a folder")
    folders = sorted(path for path in adapters.iterdir() if is_adapter(path))
    if not folders:
        raise InvalidInput(f"{adapters} holds no adapters, that is sub-folders with an adapter_config.json")
    base = load_base(model)
    encodings = _encode(base, texts) if texts else _random_rows(base, seed)
    built, left_out = _build(base, folders)
    if not built:
        raise InvalidInput(f"no adapter can be recorded: {'; '.join(f'{k}: {v}' for k, v in left_out.items())}")
    with _new_folder(root) as made:
        num_cases = _write(made, base, _base_name(model.base), encodings, built)
    return Recorded(num_cases, left_out)


def _build(base: Base, folders: Sequence[Path]) -> tuple[dict[Path, Adapter], dict[str, str]]:
    """The adapters by folder, and why the others cannot be served."""
    built: dict[Path, Adapter] = {}
    left_out: dict[str, str] = {}
    for folder in folders:
        try:
            built[folder] = build_adapter(read_checkpoint(folder), base.info, base.dtype, base)
        except AdapterdError as error:
            left_out[folder.name] = error.message
    return built, left_out


@contextmanager
def _new_folder(root: Path) -> Iterator[Path]:
    """A folder beside `root` that becomes `root` in the end, or goes if anything fails."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as private:
        made = Path(private) / "cases"
        made.mkdir()
        yield made
        made.rename(root)


def _base_name(name: str) -> str:
    """A directory by its full path: the cases may be checked from elsewhere."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _write(root: Path, base: Base, base_name: str, encodings: Sequence[Encoding], built: Mapping[Path, Adapter]) -> int:
    (root / "outputs").mkdir()
    save_file(_padded([e.input_ids for e in encodings], [e.token_type_ids for e in encodings]), root / INPUTS)
    cases = [_case(root, base, base_name, None, encodings, None)]
    for folder, adapter in built.items():
        shutil.copytree(folder, root / "adapters" / folder.name)
        cases.append(_case(root, base, base_name, folder.name, encodings, adapter))
    manifest = {"format": FORMAT, "bases": {base.info.name: {"model_type": base.info.model_type}}, "cases": cases}
    (root / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
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
        [branch] = output.branches
        answers = hidden_outputs(branch)
        if adapter is not None and (head := own_head(adapter)) is not None:
            answers |= head_outputs(adapter, head, [branch])
        tensors |= {f"row{row}.{key}": np.ascontiguousarray(value[None]) for key, value in answers.items()}
    path = f"outputs/{name}.safetensors" if name else "outputs.safetensors"
    save_file(tensors, root / path)
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
