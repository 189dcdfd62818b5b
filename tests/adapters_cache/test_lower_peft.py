"""PEFT checkpoints against what PEFT itself answered, through plain `transformers` models: no part of the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import linear
from transformers import AutoModel, DynamicCache
from transformers.activations import ACT2FN

from adapters_cache import lower_peft as module
from adapters_cache.families import family_of
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.lower_peft import ATTENTION_OUTPUT, lower_peft
from server.core import BaseInfo
from server.primitives import AdapterSpec, Delta, Head, Projection, TensorSlice

RECORDED = Path(__file__).parents[1] / "recorded"
CASES = [case for case in json.loads((RECORDED / "manifest.json").read_text())["cases"] if "peft" in case["tags"]]


@cache
def load_plain(folder: str) -> tuple[Any, BaseInfo]:
    model = AutoModel.from_pretrained(RECORDED / folder, dtype=torch.float32).eval()
    config = model.config
    is_albert = config.model_type == "albert"
    info = BaseInfo(
        name=config.model_type,
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_groups * config.inner_group_num if is_albert else config.num_hidden_layers,
        fingerprint="0" * 64,
        max_tokens=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        type_vocab_size=getattr(config, "type_vocab_size", 0),
        embedding_size=model.get_input_embeddings().weight.shape[1],
        num_heads=config.num_attention_heads,
        intermediate_size=getattr(config, "intermediate_size", None) or config.hidden_dim,
    )
    return model, info


def path_of(model_type: str, layer: int, projection: Projection) -> str:
    family = family_of(model_type)
    last = ATTENTION_OUTPUT.get(model_type, "attention.output.dense")
    return f"{family.layer(layer)}.{({**family.projections, Projection.ATTENTION_OUTPUT: last})[projection]}"


class PlainWeights:
    def __init__(self, model: Any, model_type: str) -> None:
        self._model, self._model_type = model, model_type

    def projection_weight(self, layer: int, projection: Projection) -> Tensor:
        weight: Tensor = self._model.get_submodule(path_of(self._model_type, layer, projection)).weight
        return weight.detach()

    def projection_bias(self, layer: int, projection: Projection) -> Tensor | None:
        bias = self._model.get_submodule(path_of(self._model_type, layer, projection)).bias
        return None if bias is None else bias.detach()

    def input_embeddings(self) -> Tensor:
        weight: Tensor = self._model.get_input_embeddings().weight
        return weight.detach()


class PlainForward:
    """One sample through a base with hooks on its Linears; the arithmetic of primitives.py written down once more."""

    def __init__(self, model: Any, spec: AdapterSpec, tensors: list[Tensor]) -> None:
        self._model, self._spec = model, spec
        self._flat = torch.cat([tensor.reshape(-1) for tensor in tensors])

    def take(self, where: TensorSlice) -> Tensor:
        return self._flat[where.offset : where.offset + where.num_elements].view(where.shape)

    @torch.no_grad()
    def run(self, ids: Tensor, types: Tensor) -> Tensor:
        """Hidden states [P + T, H], with the prompt's in front."""
        handles = []
        for (layer, projection), delta in self._spec.projections.items():
            linear_module = self._model.get_submodule(path_of(self._model.config.model_type, layer, projection))
            handles.append(linear_module.register_forward_hook(self._hook(delta), with_kwargs=False))
        try:
            return self._model(**self._inputs(ids, types)).last_hidden_state[0]  # type: ignore[no-any-return]
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, delta: Delta) -> Callable[..., Tensor]:
        def hook(linear_module: Any, args: tuple[Tensor], y: Tensor) -> Tensor:
            x = args[0]
            if delta.input_scale:
                x = x * self.take(delta.input_scale)
                y = linear(x, linear_module.weight, linear_module.bias)
            if delta.down and delta.up:
                y = y + x @ self.take(delta.down).T @ self.take(delta.up).T
            if delta.channel:
                y = y * self.take(delta.channel)
            return y + self.take(delta.bias) if delta.bias else y

        return hook

    def _inputs(self, ids: Tensor, types: Tensor) -> dict[str, Any]:
        model_type, spec = self._model.config.model_type, self._spec
        inputs: dict[str, Any] = {"input_ids": ids[None]}
        if model_type not in ("distilbert", "modernbert"):
            inputs["token_type_ids"] = types[None]
        if spec.prompt:
            assert spec.prompt.is_before_embeddings and not spec.prompt.is_after_first
            prompt = self.take(spec.prompt.embeddings)
            words = self._model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = torch.cat([prompt[None], words], dim=1)
            if "token_type_ids" in inputs:
                inputs["token_type_ids"] = torch.cat([types.new_zeros(1, len(prompt)), types[None]], dim=1)
        if spec.prefixes:
            first = self._model.config.pad_token_id + 1 if model_type == "roberta" else 0
            inputs["position_ids"] = (torch.arange(len(ids)) + first + spec.position_offset)[None]
            inputs["past_key_values"] = self._past()
        return inputs

    def _past(self) -> DynamicCache:
        past, heads = DynamicCache(), self._model.config.num_attention_heads
        for layer, prefix in sorted(self._spec.prefixes.items()):
            keys, values = (self.take(part) for part in (prefix.keys, prefix.values))
            past.update(*(x.view(1, len(x), heads, -1).transpose(1, 2) for x in (keys, values)), layer)
        return past

    @torch.no_grad()
    def answer(self, head: Head, hidden: Tensor) -> Tensor:
        x = hidden if head.reads_tokens else hidden[:1]
        if head.use_pooler and self._model.config.model_type == "albert":
            x = self._model.pooler_activation(self._model.pooler(x))
        elif head.use_pooler:
            x = self._model.pooler(x[None])
        for layer in head.layers:
            x = linear(x, self.take(layer.dense.weight), self.take(layer.dense.bias) if layer.dense.bias else None)
            x = ACT2FN[layer.activation](x) if layer.activation else x
        return x if head.reads_tokens else x[0]


def lowered(case: dict[str, Any]) -> tuple[PlainForward, AdapterSpec]:
    model, info = load_plain(case["base_dir"])
    [source] = case["adapters"]
    checkpoint = read_checkpoint(RECORDED / source["dir"], name=source["name"])
    spec, tensors = lower_peft(checkpoint, info, PlainWeights(model, info.model_type))
    return PlainForward(model, spec, tensors), spec


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_lowered_checkpoint_answers_as_peft(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSERVED", frozenset())
    plain, spec = lowered(case)
    inputs, recorded = load_file(RECORDED / case["inputs"]), load_file(RECORDED / case["outputs"])
    types = torch.zeros_like(inputs["token_type_ids"]) if case["base"] == "roberta" else inputs["token_type_ids"]
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        hidden = plain.run(inputs["input_ids"][row][mask], types[row][mask])
        answers = {"last_hidden_state": hidden}
        if spec.head:
            logits = plain.answer(spec.head, hidden)
            is_qa = "start_logits" in recorded
            answers |= {"start_logits": logits[:, 0], "end_logits": logits[:, 1]} if is_qa else {"logits": logits}
        assert (case["head"] is None) == (spec.head is None)
        for name, answer in answers.items():
            own = recorded.get(f"row{row}.{name}")
            want = recorded[name][row][: len(answer)] if own is None else own[0]
            torch.testing.assert_close(answer, want, **case["tolerance"])


def test_every_recorded_method_of_peft_is_checked() -> None:
    assert {case["methods"][0] for case in CASES} == {"lora", "dora", "ia3", "prefix_tuning", "prompt_tuning"}
    assert len({case["base"] for case in CASES}) == 7
