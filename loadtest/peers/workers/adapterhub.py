"""AdapterHub's library on bottlenecks: many adapters in a batch with `BatchSplit`, and one active adapter per text."""

from __future__ import annotations

from itertools import groupby

import adapters
import transformers
from adapters import AutoAdapterModel
from adapters.composition import BatchSplit
from protocol import Answers, Job, Loaded, serve
from torch import Tensor


def load(job: Job) -> Loaded:
    model = AutoAdapterModel.from_pretrained(job.base, dtype=job.torch_dtype, attn_implementation="sdpa")
    names = [model.load_adapter(folder, use_safetensors=True) for folder in job.adapters]
    model.to(device=job.device, dtype=job.torch_dtype).eval()

    def batch_split(budget: int) -> Answers:
        """Texts of one adapter have to be neighbours, so each batch is ordered by adapter."""
        answers: list[Tensor | None] = [None] * len(job.texts)
        for batch in job.batches(budget):
            batch.sort(key=lambda text: job.adapter_of(text))
            groups = [(a, len(list(rows))) for a, rows in groupby(batch, lambda text: job.adapter_of(text))]
            split = BatchSplit(*(names[a] for a, _ in groups), batch_sizes=[size for _, size in groups])
            model.set_active_adapters(split if len(groups) > 1 else names[groups[0][0]])
            logits = model(**job.padded(batch)).logits.float().cpu()
            for text, row in zip(batch, logits, strict=True):
                answers[text] = row
        return answers

    def switch(_: int) -> Answers:
        answers: list[Tensor] = []
        for text in range(len(job.texts)):
            model.set_active_adapters(names[job.adapter_of(text)])
            answers += model(**job.padded([text])).logits.float().cpu()
        return answers

    versions = {"transformers": transformers.__version__, "adapters": adapters.__version__}
    return Loaded(versions, {"batch_split": batch_split, "switch": switch})


if __name__ == "__main__":
    serve(load)
