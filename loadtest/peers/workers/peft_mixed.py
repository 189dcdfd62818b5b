"""PEFT's mixed batch: LoRA and classifier of every row are named by `adapter_names`."""

from __future__ import annotations

import peft
import transformers
from peft import PeftModel
from protocol import Answers, Job, Loaded, serve
from torch import Tensor
from transformers import AutoModelForSequenceClassification


def load(job: Job) -> Loaded:
    base = AutoModelForSequenceClassification.from_pretrained(
        job.base, num_labels=2, dtype=job.torch_dtype, attn_implementation="sdpa"
    )
    first, *others = job.adapters
    model = PeftModel.from_pretrained(base, first, adapter_name="a0")
    for number, folder in enumerate(others, start=1):
        model.load_adapter(folder, adapter_name=f"a{number}")
    model.to(device=job.device, dtype=job.torch_dtype).eval()

    def mixed(budget: int) -> Answers:
        answers: list[Tensor] = []
        for batch in job.batches(budget):
            names = [f"a{job.adapter_of(text)}" for text in batch]
            answers += model(**job.padded(batch), adapter_names=names).logits.float().cpu()
        return answers

    return Loaded({"transformers": transformers.__version__, "peft": peft.__version__}, {"mixed": mixed})


if __name__ == "__main__":
    serve(load)
