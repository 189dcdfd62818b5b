"""What a composition may not do to others or to its own identity, through the wire."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from make_adapters import make_adapter, make_fusion
from safetensors.torch import save_file

from adapterd import AsyncClient, Error
from adapterd.v1 import inference_pb2 as v1
from server.core import BaseInfo

CLASSES = {"head_type": "classification", "num_labels": 3}
SHORT = [7, 8, 9, 10]
NUM_VIRTUAL = 4


@pytest.fixture
def adapters_path(tmp_path: Path, base_info: BaseInfo) -> Path:
    folder = tmp_path / "adapters"
    configs = {
        "a": "seq_bn[reduction_factor=4]",
        "b": "seq_bn[reduction_factor=8]",
        "edit": "loreft[r=2]",
        "late": "seq_bn[reduction_factor=4]",
    }
    for seed, (name, config) in enumerate(configs.items()):
        left_out = [0] if name == "late" else []
        make_adapter(folder / name, base_info, config=config, head=CLASSES, seed=seed, leave_out=left_out)
    make_fusion(folder / "a,b", base_info, ["a", "b"], seed=50)
    make_fusion(folder / "other", base_info, ["a", "b"], seed=51, name="custom")
    make_fusion(folder / "clash", base_info, ["b", "a"], seed=52, name="a")
    save_peft(folder / "prompt", base_info, "PROMPT_TUNING", base_info.hidden_size)
    save_peft(folder / "prefix", base_info, "PREFIX_TUNING", base_info.num_layers * 2 * base_info.hidden_size)
    return folder


def save_peft(folder: Path, base: BaseInfo, kind: str, width: int) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file({"prompt_embeddings": torch.randn(NUM_VIRTUAL, width)}, folder / "adapter_model.safetensors")
    config: dict[str, object] = {
        "peft_type": kind,
        "task_type": "FEATURE_EXTRACTION",
        "num_virtual_tokens": NUM_VIRTUAL,
        "token_dim": base.hidden_size,
        "num_layers": base.num_layers,
        "num_attention_heads": base.num_heads,
        "num_transformer_submodules": 1,
    }
    if kind == "PREFIX_TUNING":
        config |= {"encoder_hidden_size": base.hidden_size, "prefix_projection": False}
    else:
        config |= {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None, "tokenizer_name_or_path": None}
    (folder / "adapter_config.json").write_text(json.dumps(config))


async def answer(client: AsyncClient, adapter: str, **options: object) -> v1.PredictResponse:
    return await client.predict(adapter, tokens=[SHORT], return_logits=True, **options)  # type: ignore[arg-type]


def values(result: v1.Result) -> np.ndarray:
    return np.array(result.logits.values)


@pytest.mark.parametrize("adapter", ["prompt", "prefix", "Stack(prefix, a)"])
async def test_input_without_room_for_a_prompt_is_refused_and_fails_nobody(
    client: AsyncClient, base_info: BaseInfo, adapter: str
) -> None:
    longest = [7] * (base_info.max_tokens - NUM_VIRTUAL)
    await client.predict(adapter, tokens=[longest])
    neighbours = [asyncio.create_task(answer(client, name)) for name in ("a", "b")]
    with pytest.raises(Error, match=rf"takes {NUM_VIRTUAL} positions; the limit is {base_info.max_tokens}"):
        await client.predict(adapter, tokens=[[*longest, 7]])
    assert [reply.digest != "" for reply in await asyncio.gather(*neighbours)] == [True, True]


async def test_fusion_may_bear_the_name_of_an_adapter(client: AsyncClient) -> None:
    [result] = (await answer(client, "Fuse(b, a; a)", heads=["a"])).results
    assert np.isfinite(values(result)).all()


async def test_digest_tells_which_fusion_is_where(client: AsyncClient) -> None:
    one, two = "Fuse(a, b)", "Fuse(a, b; custom)"
    chains = ([one, two, two], [one, two, one], [two, one, one])
    replies = [await answer(client, f"Stack({', '.join(chain)})", heads=["a"]) for chain in chains]
    assert len({reply.digest for reply in replies}) == len({values(r.results[0]).tobytes() for r in replies}) == 3


@pytest.mark.parametrize("branches", [["Stack(edit)", "Stack(late, edit)"], ["Stack(late, edit)", "Stack(edit)"]])
async def test_parallel_parts_where_only_one_branch_edits(client: AsyncClient, branches: list[str]) -> None:
    [together] = (await answer(client, f"Parallel({', '.join(branches)})")).results
    for branch, result in zip(branches, together.parallel, strict=True):
        [alone] = (await answer(client, branch)).results
        np.testing.assert_allclose(values(result), values(alone), atol=1e-5)


@pytest.mark.parametrize("expression", ["Average(a, b; normalize=banana)", "Average(a, b; 1e308, 1e308)"])
async def test_option_that_makes_no_sense_is_refused(client: AsyncClient, expression: str) -> None:
    with pytest.raises(Error, match="INVALID_ARGUMENT"):
        await answer(client, expression)


async def test_head_of_a_branch_is_its_own_part_s(client: AsyncClient) -> None:
    [both] = (await answer(client, "Parallel(Stack(a), Stack(b))", heads=["a", "b"])).results
    for name, result in zip(("a", "b"), both.parallel, strict=True):
        np.testing.assert_allclose(values(result), values((await answer(client, name)).results[0]), atol=1e-5)


async def test_every_skipped_layer_counts(client: AsyncClient, base_info: BaseInfo) -> None:
    every = list(range(base_info.num_layers))
    few, all_of_them = await answer(client, "a", skip_layers=every[:1]), await answer(client, "a", skip_layers=every)
    assert few.digest != all_of_them.digest
    assert not np.allclose(values(few.results[0]), values(all_of_them.results[0]))
