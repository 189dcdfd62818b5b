"""Random adapters of every method, composed at random, with random heads, in one batch: all as the plain
implementation has it, which knows neither batches nor padding and shares no code with the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from make_adapters import HEADS, OTHER_HEADS, SEPARATE_CONFIGS, configs_for, make_adapter, make_fusion
from make_bases import MODELS, SHAPE
from make_tokenizer import save_tokenizer
from plain import Outputs, Plain, Tree, leaves, results
from plain_files import read_adapter, read_base, read_fusion
from plain_methods import members, own_rows
from random_trees import Trees, refusals
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.formats.fusions import read_fusion as read_fusion_checkpoint
from adapters_cache.targets import make_target
from server.config import ModelConfig
from server.core import Adapter, Batch, BranchOutput, Encoding, Pooling, Sample, SampleOutput, Target, TokenInput
from server.errors import InvalidInput, UnsupportedConfig
from server.expression import parse
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from server.primitives import SiteKind

ATOL, RTOL = 2e-5, 1e-4
NUM_LAYERS = 3
MASK_ID = 4
BATCH_SIZES = (1, 2, 3, 7, 16, 33)
ALL_HEADS = (*HEADS, *(head for head in OTHER_HEADS if head["head_type"] != "multiple_choice"))
TOGETHER: Mapping[str, tuple[str, ...]] = {  # adapters that one block takes
    "seq": (
        "seq_bn[reduction_factor=4]",
        "seq_bn[reduction_factor=8,non_linearity=tanh]",
        "compacter++[reduction_factor=8,phm_dim=2]",
    ),
    "inv": ("seq_bn_inv[reduction_factor=4]", "seq_bn[reduction_factor=2,ln_before=true]"),
    "double": (
        "double_seq_bn[reduction_factor=8]",
        "double_seq_bn[reduction_factor=4,ln_after=true,use_gating=true]",
        "double_seq_bn[residual_before_ln=false,original_ln_before=true,scaling=channel]",
    ),
    "par": ("par_bn[reduction_factor=4,scaling=1.0]", "scaled_par_bn[reduction_factor=8]"),
    "lora": ("lora[r=2]", "lora[r=4,alpha=2]", "lora[r=3,use_gating=true]", "vera[r=4]"),
    "ia3": ("ia3", "ia3[alpha=2]", "ia3[use_gating=true]"),
    "prefix": ("prefix_tuning[prefix_length=2,bottleneck_size=4]", "prefix_tuning_flat[prefix_length=3]"),
}
FUSIONS: tuple[tuple[str, int, tuple[SiteKind, ...], Mapping[str, Any] | str], ...] = (
    ("seq", 2, (SiteKind.OUTPUT,), "dynamic"),
    ("seq", 3, (SiteKind.OUTPUT,), "static"),
    ("inv", 2, (SiteKind.OUTPUT,), {"query_before_ln": True, "residual_before": True}),
    ("double", 2, tuple(SiteKind), {"value_before_softmax": False}),
    ("double", 3, tuple(SiteKind), {"query_before_ln": True, "temperature": True}),
    ("par", 2, (SiteKind.OUTPUT,), "dynamic"),
)


@dataclass
class Lease:
    adapter: Adapter | None
    slot: int
    is_fresh: bool = True

    def release(self, *, failed: bool = False) -> None: ...


@dataclass(frozen=True)
class Pool:
    """One base and everything on disk for it, read by the engine's means and by those of the plain implementation."""

    base: Base
    plain: Plain
    adapters: Mapping[str, Adapter]
    fusions: Mapping[str, Adapter]
    kinds: Mapping[str, Sequence[str]]
    fusion_members: Mapping[str, Sequence[str]]
    fusion_sites: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Case:
    sample: Sample
    tree: Tree
    heads: Sequence[str | None]
    skip_layers: Sequence[int]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    root = tmp_path_factory.mktemp(request.param)
    base = load_base(ModelConfig(base=str(_save_base(root / "base", request.param)), device="cpu"))
    info, kinds, configs = base.info, {}, {}
    for i, config in enumerate(configs_for(info)):
        configs[f"every{i}"] = config
    kinds["every"] = tuple(configs)
    for kind, together in TOGETHER.items():
        kinds[kind] = tuple(f"{kind}{i}" for i in range(len(together)))
        configs |= dict(zip(kinds[kind], together, strict=True))
    for i, (name, config) in enumerate(configs.items()):
        head = ALL_HEADS[i % len(ALL_HEADS)]
        leave_out = [1] if name.startswith("every") and i % 4 == 3 else []
        make_adapter(root / name, info, config=config, head=head, seed=i, leave_out=leave_out, as_bin=i % 3 == 0)
    fusion_members = {f"fuse{i}": kinds[kind][:count] for i, (kind, count, _, _) in enumerate(FUSIONS)}
    for i, (_, _, sites, config) in enumerate(FUSIONS):
        own = fusion_members[f"fuse{i}"]
        make_fusion(root / f"fuse{i}", info, own, config=config, kinds=sites, seed=i, name=f"fuse{i}")
        _calm(root / f"fuse{i}" / "model_adapter_fusion.safetensors")
    checkpoints = {name: read_checkpoint(root / name, name=name) for name in configs}
    return Pool(
        base=base,
        plain=Plain(
            read_base(root / "base"),
            {name: read_adapter(root / name) for name in configs},
            {name: read_fusion(root / name) for name in fusion_members},
        ),
        adapters={name: build_adapter(c, info, base.dtype, base, name=name) for name, c in checkpoints.items()},
        fusions={
            name: build_adapter(read_fusion_checkpoint(root / name), info, base.dtype, base) for name in fusion_members
        },
        kinds=kinds,
        fusion_members=fusion_members,
        fusion_sites={
            f"fuse{i}": [{SiteKind.ATTENTION: "mh", SiteKind.OUTPUT: "output"}[kind] for kind in sites]
            for i, (_, _, sites, _) in enumerate(FUSIONS)
        },
    )


def _save_base(path: Path, model_type: str) -> Path:
    """A base whose weights, biases and LayerNorms are all far from trivial."""
    model_class, config = MODELS[model_type]
    shape = SHAPE | {"num_hidden_layers": NUM_LAYERS, "type_vocab_size": config.type_vocab_size}
    torch.manual_seed(0)
    model_class(type(config)(**shape)).save_pretrained(path)
    state = load_file(path / "model.safetensors")
    state = {key: value + 0.2 * torch.randn(value.shape) for key, value in state.items()}
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    AutoTokenizer.from_pretrained(save_tokenizer(path), mask_token="[MASK]").save_pretrained(path)
    return path


def _calm(path: Path) -> None:
    """Make a fusion's scores small: a softmax over large ones magnifies rounding."""
    state = load_file(path)
    save_file({key: value * 0.05 if ".query." in key else value for key, value in state.items()}, path)


async def test_every_adapter_of_the_pool_alone_answers_as_plainly_computed(pool: Pool) -> None:
    rng = Random(0)
    cases = [_case(pool, rng, name) for name in pool.adapters]
    _compare_batch(pool, rng, [case for case in cases if isinstance(case, Case)], len(cases))


@pytest.mark.parametrize("size", BATCH_SIZES)
@pytest.mark.parametrize("seed", range(4))
async def test_random_compositions_with_random_heads_share_a_batch(pool: Pool, size: int, seed: int) -> None:
    rng, cases = Random(f"{size} {seed}"), []
    while len(cases) < size:
        case = _case(pool, rng)
        if case is not None:
            cases.append(case)
    _compare_batch(pool, rng, cases, size)


async def test_parallel_blocks_of_one_stack_go_side_by_side(pool: Pool) -> None:
    first, second = ({"type": "Parallel", "children": [f"{kind}0", f"{kind}1"]} for kind in ("lora", "double"))
    case = _case(pool, Random(0), {"type": "Stack", "children": [first, "seq0", second]})
    assert case is not None and len(case.sample.target.branches) == 2
    _compare_batch(pool, Random(0), [case], 1)


async def test_results_whose_embeddings_differ_part_before_them(pool: Pool) -> None:
    prompted = [name for name, adapter in pool.plain.adapters.items() if members(adapter, "prompt_tuning")]
    trees = [{"type": "Parallel", "children": ["seq0", other]} for other in ("inv0", *prompted)]
    cases = [_case(pool, Random(0), tree, skipped=[0, 1]) for tree in trees]
    _compare_batch(pool, Random(0), [case for case in cases if case is not None], len(prompted) + 1)


async def test_most_random_trees_have_an_answer(pool: Pool) -> None:
    rng = Random(0)
    kept = [case for case in (_case(pool, rng) for _ in range(200)) if case is not None]
    assert len(kept) > 80
    assert {case.tree["type"] for case in kept if isinstance(case.tree, dict)} == {
        "Stack",
        "Fuse",
        "Average",
        "Split",
        "Parallel",
    }


def test_the_pool_holds_every_method_of_families_with_separate_projections(pool: Pool) -> None:
    assert len(pool.adapters) >= len(configs_for(pool.base.info)) > len(SEPARATE_CONFIGS)


def _case(pool: Pool, rng: Random, tree: Tree = None, skipped: Sequence[int] | None = None) -> Case | None:
    """A random sample; None where the library has no answer, and the engine says so."""
    num_tokens = rng.randint(3, 20)
    tree = Trees(rng, pool.kinds, pool.fusion_members).draw(num_tokens) if tree is None else tree
    if skipped is None:
        skipped = rng.sample(range(NUM_LAYERS), rng.randint(1, NUM_LAYERS)) if rng.random() < 0.2 else []
    branches = results(tree)
    reasons = {
        reason for branch in branches for reason in refusals(branch, pool.plain.adapters, NUM_LAYERS, pool.fusion_sites)
    }
    named = _random_heads(pool, rng, len(branches)) if rng.random() < 0.4 else []
    try:
        target = make_target(parse(_text(tree)), pool.adapters, pool.fusions, named, skipped)
    except (UnsupportedConfig, InvalidInput) as error:
        assert reasons, f"{_text(tree)} is refused without need: {error.message}"
        return None
    assert not reasons, f"{_text(tree)} has an answer in spite of {reasons}"
    heads: Sequence[str | None] = named or [_own_head(pool, branch) for branch in branches]
    return Case(_sample(rng, num_tokens, target), tree, heads, skipped)


def _random_heads(pool: Pool, rng: Random, num_results: int) -> list[str]:
    known = [name for name, adapter in pool.plain.adapters.items() if adapter.head is not None]
    count = rng.choice([1, num_results]) if num_results > 1 else rng.randint(1, 2)
    return rng.sample(known, count)


def _own_head(pool: Pool, tree: Tree) -> str | None:
    """The head named like the last adapter, unless another block than a Stack comes last."""
    while not isinstance(tree, str):
        if tree["type"] != "Stack":
            return None
        tree = tree["children"][-1]
    return tree if pool.plain.adapters[tree].head is not None else None


def _text(tree: Tree) -> str:
    """The expression that a request would have."""
    if isinstance(tree, str):
        return tree
    options: list[object] = []
    if tree["type"] == "Fuse":
        options = [tree["name"]]
    elif tree["type"] == "Split":
        options = tree["splits"]
    elif tree.get("weights"):
        options = [*tree["weights"], *([] if tree["normalize_weights"] else ["normalize=false"])]
    inside = ", ".join(_text(child) for child in tree["children"])
    return f"{tree['type']}({inside}{'; ' if options else ''}{', '.join(map(str, options))})"


def _sample(rng: Random, num_tokens: int, target: Target) -> Sample:
    ids = (2, *(rng.choice([MASK_ID, rng.randrange(5, 70)]) for _ in range(num_tokens - 1)))
    cuts = sorted(rng.sample(range(1, num_tokens), rng.randint(2, num_tokens - 1)))
    return Sample(
        encoding=Encoding(ids, (0,) * num_tokens, TokenInput(ids), word_starts=tuple(cuts)),
        target=target,
        pooling=rng.choice(list(Pooling)),
        reply=asyncio.get_running_loop().create_future(),
        deadline=None,
        return_hidden=rng.random() < 0.7,
    )


def _compare_batch(pool: Pool, rng: Random, cases: Sequence[Case], size: int) -> None:
    assert len(cases) == size
    runner = Runner(pool.base, SlotBank(pool.base.device, pool.base.dtype), Metrics())
    parts = {part.digest: part for case in cases for part in case.sample.target.parts}
    numbers = rng.sample(range(1, 1000), len(parts))
    leases = {digest: Lease(part, slot) for (digest, part), slot in zip(parts.items(), numbers, strict=True)}
    leases |= {case.sample.digest: Lease(None, 0) for case in cases if not case.sample.target.parts}
    outcomes = runner.execute(Batch([case.sample for case in cases], leases))
    for case, outcome in zip(cases, outcomes, strict=True):
        assert isinstance(outcome, SampleOutput)
        encoding = case.sample.encoding
        wanted = pool.plain.run(
            encoding.input_ids,
            encoding.token_type_ids,
            case.tree,
            case.heads,
            case.skip_layers,
            encoding.word_starts,
        )
        assert len(outcome.branches) == len(wanted)
        branches = results(case.tree)
        branches = branches * len(wanted) if len(branches) == 1 else branches
        for number, (got, want) in enumerate(zip(outcome.branches, wanted, strict=True)):
            where = f"{_text(case.tree)} heads {case.heads} skipping {case.skip_layers}, result {number}"
            _compare(pool, case, branches[number], got, want, where)


def _compare(pool: Pool, case: Case, branch: Tree, got: BranchOutput, want: Outputs, where: str) -> None:
    if case.sample.return_hidden:
        assert got.hidden is not None and got.pooler is not None
        _close(got.hidden, want["last_hidden_state"], f"{where}: hidden")
        _close(got.pooler, want["pooler_output"], f"{where}: pooler")
    else:
        assert got.hidden is None and got.pooler is None
    _close(got.values, _values(pool, case, branch, want), f"{where}: values")
    if "rel_preds" in want:
        assert got.relations is not None
        _close(got.relations, want["rel_preds"], f"{where}: relations")


def _values(pool: Pool, case: Case, branch: Tree, want: Outputs) -> torch.Tensor:
    """What a sample is answered, from all that was computed: prompts, and all but masks, may be left out."""
    hidden = want["last_hidden_state"]
    own = _answered(pool, case, branch, len(hidden))
    if "arc_preds" in want:
        return want["arc_preds"]
    if "start_logits" in want:
        return torch.stack([want["start_logits"], want["end_logits"]], dim=1)[own]
    if "logits" in want and want["logits"].ndim == 1:
        return want["logits"]
    if "logits" in want and want["logits"].shape[1] == pool.base.info.vocab_size:
        is_whole = case.sample.return_hidden
        return want["logits"][own if is_whole else _masked(case, own)]
    if "logits" in want:
        return want["logits"][own]
    pooling = case.sample.pooling
    if pooling is Pooling.MEAN:
        return hidden[own].mean(0)
    return hidden[0 if pooling is Pooling.CLS else -1]


def _masked(case: Case, own: Sequence[int]) -> list[int]:
    return [row for row, token in zip(own, case.sample.encoding.input_ids, strict=True) if token == MASK_ID]


def _answered(pool: Pool, case: Case, branch: Tree, length: int) -> list[int]:
    """Rows that are answered one by one: all where token vectors were asked for, else the sample's own tokens."""
    first = pool.plain.adapters[next(leaves(branch))]
    return list(range(length)) if case.sample.return_hidden else own_rows(first, length)


def _close(got: np.ndarray[Any, Any], want: torch.Tensor, what: str) -> None:
    assert got.shape == tuple(want.shape), what
    size = max(1.0, float(want.abs().mean())) if want.numel() else 1.0  # rounding grows with what is summed
    np.testing.assert_allclose(got, want.numpy(), atol=ATOL * size, rtol=RTOL, err_msg=what)
