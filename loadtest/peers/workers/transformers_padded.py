"""Plain transformers without adapters, on padded batches. Answers are the vectors of the first token."""

from __future__ import annotations

import transformers
from protocol import Answers, Job, Loaded, serve
from torch import Tensor
from transformers import AutoModel


def load(job: Job) -> Loaded:
    model = AutoModel.from_pretrained(
        job.base, dtype=job.torch_dtype, attn_implementation="sdpa", add_pooling_layer=False
    )
    model.to(job.device).eval()

    def padded(budget: int) -> Answers:
        answers: list[Tensor] = []
        for batch in job.batches(budget):
            answers += model(**job.padded(batch)).last_hidden_state[:, 0].float().cpu()
        return answers

    return Loaded({"transformers": transformers.__version__}, {"padded": padded})


if __name__ == "__main__":
    serve(load)
