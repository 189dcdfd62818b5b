"""A base without a pooler: what needs one is refused, and harms nobody in its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from make_adapters import make_adapter
from make_bases import MODELS
from transformers import RobertaForMaskedLM

from adapterd import AsyncClient, Error, predict_request
from server.app import App
from server.config import ModelConfig, ServerConfig
from server.model.base import load_base

HEAD = {"head_type": "classification", "num_labels": 3}


@pytest.fixture
def config(config: ServerConfig, tmp_path: Path, adapters_path: Path) -> ServerConfig:
    torch.manual_seed(0)
    RobertaForMaskedLM(MODELS["roberta"][1]).save_pretrained(tmp_path / "bare")
    model = ModelConfig(base=str(tmp_path / "bare"), device="cpu", num_threads=1)
    base = load_base(model).info
    assert not base.has_pooler
    make_adapter(adapters_path / "first", base, head=HEAD)
    with_pooler = replace(base, has_pooler=True)  # as the base it was trained on
    make_adapter(adapters_path / "pooled", with_pooler, head={**HEAD, "use_pooler": True})
    return replace(config, model=model)


async def test_head_that_reads_the_pooler_is_refused_and_its_neighbours_are_answered(
    app: App, client: AsyncClient
) -> None:
    with pytest.raises(Error, match="use_pooler"):
        await client.load("pooled")
    names = ("first", "pooled", "base", "first")
    outcomes = await client.predict_batch([predict_request(name, tokens=[[5, 6, 7]]) for name in names])
    assert [isinstance(outcome, Error) for outcome in outcomes] == [name == "pooled" for name in names]
