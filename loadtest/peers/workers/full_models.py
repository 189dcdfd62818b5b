"""One complete model per task, as many as fit into memory; each text goes alone, unpadded, through its task's model.

A task's model is the base with that task's LoRA added into its weights and its classifier: the same function as the
adapter, so that answers can be compared.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from protocol import Answers, Job, Loaded, rss_bytes, serve
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


def load(job: Job) -> Loaded:
    base = AutoModelForSequenceClassification.from_pretrained(
        job.base, num_labels=2, dtype=job.torch_dtype, attn_implementation="sdpa"
    )
    base.to(job.device).eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in base.parameters())
    before = _used_bytes(job)
    models: list[Any] = []
    for folder in job.adapters:
        if models and _used_bytes(job) + size > job.memory_bytes:
            break
        models.append(_task_model(base, Path(folder)))
    per_task = (_used_bytes(job) - before) // len(models)

    def one_by_one(_: int) -> Answers:
        answers: list[Tensor | None] = []
        for text in range(len(job.texts)):
            task = job.adapter_of(text)
            answers += models[task](**job.padded([text])).logits.float().cpu() if task < len(models) else [None]
        return answers

    versions = {"transformers": transformers.__version__}
    return Loaded(versions, {"one_by_one": one_by_one}, per_task, len(models))


def _used_bytes(job: Job) -> int:
    return torch.cuda.memory_allocated() if job.device.startswith("cuda") else rss_bytes()


@torch.no_grad()
def _task_model(base: Any, folder: Path) -> Any:
    config = json.loads((folder / "adapter_config.json").read_text())
    state = load_file(folder / "adapter_model.safetensors", device=str(base.device))
    tensors = {key.removeprefix(PREFIX): value for key, value in state.items()}
    model = copy.deepcopy(base)
    for key, value in tensors.items():
        if key.startswith("classifier."):
            model.get_parameter(key).copy_(value)
        elif key.endswith(DOWN):
            name = key.removesuffix(DOWN)
            delta = tensors[name + UP] @ value * (config["lora_alpha"] / config["r"])
            model.get_parameter(f"{name}.weight").add_(delta)
    return model


if __name__ == "__main__":
    serve(load)
