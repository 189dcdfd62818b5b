from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import CONFORMANCE, RecordedWeights, cases, recorded_base

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import ADAPTER_FILES, HEAD_FILES, VERSION, read_checkpoint, write_checkpoint
from adapters_cache.formats.checkpoint import NO_METHOD
from adapters_cache.formats.fusions import FUSION_FILES
from adapters_cache.formats.fusions import TRAINING_ONLY as FUSION_TRAINING_ONLY
from adapters_cache.formats.pickles import read_pickle
from adapters_cache.formats.safe_file import read_safetensors
from adapters_cache.formats.schemas import DECODER_ONLY, TRAINING_ONLY
from adapters_cache.formats.setups import read_setup
from server.core import Adapter

needs_conformance = pytest.mark.skipif(not CONFORMANCE.exists(), reason="no recorded cases here")
weights_of = cache(RecordedWeights)


def build(folder: str, base_dir: str, **options: Any) -> Adapter:
    checkpoint = read_checkpoint(CONFORMANCE / folder, **options)
    return build_adapter(checkpoint, recorded_base(base_dir), torch.float32, weights_of(base_dir))


def sources() -> list[tuple[str, str, str, tuple[int, ...]]]:
    """(kind, folder, folder of the base, leave_out) of everything that the cases name, once each."""
    found = set()
    for case in cases():
        for kind in ("adapters", "fusions", "heads"):
            for entry in case[kind]:
                found.add((kind, entry["dir"], case["base_dir"], tuple(entry.get("leave_out", ()))))
        if case.get("setup_dir"):
            setup = read_setup(CONFORMANCE / case["setup_dir"])
            for kind, folders in (("adapters", setup.adapters), ("fusions", setup.fusions)):
                found |= {(kind, str(path.relative_to(CONFORMANCE)), case["base_dir"], ()) for path in folders.values()}
    return sorted(found)


@needs_conformance
@pytest.mark.parametrize("source", sources(), ids=lambda source: f"{source[1]}{list(source[3]) or ''}")
def test_recorded_folder_is_read_and_lowered(source: tuple[str, str, str, tuple[int, ...]]) -> None:
    kind, folder, base_dir, leave_out = source
    adapter = build(folder, base_dir, leave_out=leave_out)
    spec = adapter.spec
    assert adapter.weights.numel() == spec.num_elements > 0
    assert (adapter.manifest.method == "fusion") is (spec.fusion is not None) is (kind == "fusions")
    assert (adapter.manifest.method == NO_METHOD) is (kind == "heads")
    parts = (spec.sites, spec.projections, spec.prefixes, spec.edits, spec.prompt, spec.coupling)
    assert any(parts) is (kind == "adapters")
    assert (spec.head is not None) is (CONFORMANCE / folder / "head_config.json").exists()


def single(case: dict[str, Any]) -> bool:
    return isinstance(case["composition"], str)


@needs_conformance
@pytest.mark.parametrize(
    "case", [case for case in cases() if isinstance(case["head"], str)], ids=lambda case: case["id"]
)
def test_recorded_head_is_that_of_its_adapter_or_of_a_folder(case: dict[str, Any]) -> None:
    names = set()
    for entry in [*case["adapters"], *case["heads"]]:
        names |= build(entry["dir"], case["base_dir"], name=entry["name"]).spec.heads.keys()
    if case.get("setup_dir"):
        names |= read_setup(CONFORMANCE / case["setup_dir"]).adapters.keys()
    assert case["head"] in names


@needs_conformance
@pytest.mark.parametrize("case", [*filter(single, cases())], ids=lambda case: case["id"])
def test_recorded_method_is_recognised(case: dict[str, Any]) -> None:
    entry = next(entry for entry in case["adapters"] if entry["name"] == case["composition"])
    adapter = build(entry["dir"], case["base_dir"], name=entry["name"])
    found = {adapter.manifest.method} | ({"invertible"} if adapter.spec.coupling else set())
    assert found <= {*case["methods"]}


@needs_conformance
def test_recorded_setups_give_the_recorded_composition() -> None:
    for case in cases("setup"):
        setup = read_setup(CONFORMANCE / case["setup_dir"])
        assert setup.tree == case["composition"] and setup.head == case["head"]
        assert setup.adapters.keys() == {"c_a", "c_b", "c_lang"} and setup.fusions.keys() == {"c_a,c_b"}


def state_of(folder: Path, safe: str, pickled: str) -> dict[str, torch.Tensor] | None:
    if (folder / safe).exists():
        return read_safetensors(folder / safe, 1 << 22)
    return read_pickle(folder / pickled, 1 << 22) if (folder / pickled).exists() else None


def written() -> list[tuple[str, str]]:
    """(folder, folder of the base) of what the newest library saved, static heads apart."""
    found = []
    for _, folder, base_dir, leave_out in sources():
        configs = [json.loads(path.read_text()) for path in (CONFORMANCE / folder).glob("*_config.json")]
        if not leave_out and all(c.get("version") == VERSION and c.get("config") is not None for c in configs):
            found.append((folder, base_dir))
    return found


@needs_conformance
@pytest.mark.parametrize(("folder", "base_dir"), written())
def test_recorded_folder_is_written_as_the_library_wrote_it(tmp_path: Path, folder: str, base_dir: str) -> None:
    """Same files, same keys, same tensors; of the configuration only fields that training alone reads are missing."""
    recorded = CONFORMANCE / folder
    write_checkpoint(tmp_path, read_checkpoint(recorded), recorded_base(base_dir))
    for safe, pickled in (ADAPTER_FILES, HEAD_FILES, FUSION_FILES):
        theirs, ours = state_of(recorded, safe, pickled), state_of(tmp_path, safe, pickled)
        if theirs is None or ours is None:
            assert theirs is ours is None
            continue
        theirs = {key: tensor for key, tensor in theirs.items() if ".prefix_tuning.pool." not in key}
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for path in recorded.glob("*_config.json"):
        ours, theirs = (json.loads(file.read_text()) for file in (tmp_path / path.name, path))
        assert theirs.keys() - ours.keys() == set() and ours.keys() - theirs.keys() == {"base_fingerprint"}
        for one, two in zip(members(ours["config"]), members(theirs["config"]), strict=True):
            read = {k: v for k, v in one.items() if k not in {"subtract_projection"} | FUSION_TRAINING_ONLY}
            assert read.items() <= two.items()
            assert two.keys() - one.keys() <= TRAINING_ONLY | DECODER_ONLY | FUSION_TRAINING_ONLY


def members(config: dict[str, Any]) -> list[dict[str, Any]]:
    return config.get("configs", [config])
