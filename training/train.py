"""Train one adapter on the stitched base: the forward pass is the one that serves."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from adapters_cache.formats.checkpoint import Checkpoint
from adapters_cache.lowering import lower
from server.composition import Leaf
from server.core import Encoding
from server.model.base import Base
from server.model.heads import HeadRow, run_head
from server.model.routing import Route, RoutingPlan
from server.model.sites import Phase
from server.model.weights import HeadWeights, SlotWeights, view
from server.primitives import Task

IGNORED = -100  # target of tokens that carry no label
SLOT = 1
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A tokenized example. target: class [1], multi-hot [C], or class per token [T]."""

    encoding: Encoding
    target: Tensor


@dataclass(frozen=True, slots=True)
class TrainConfig:
    epochs: int = 8
    learning_rate: float = 1e-3
    batch_size: int = 32
    warmup: float = 0.06  # share of steps
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0


class Trainer:
    """Trains the tensors of one checkpoint; the base stays frozen."""

    def __init__(self, base: Base, checkpoint: Checkpoint, config: TrainConfig) -> None:
        self._base = base
        self._config = config
        self._checkpoint = checkpoint

    def fit(
        self, train: Sequence[Item], score: Callable[[list[Tensor]], float], dev: Sequence[Item], progress: Progress
    ) -> tuple[Checkpoint, float]:
        """The tensors of the epoch that scored best on `dev`, detached, and that score.

        score      figure of merit of the logits of `dev`, in order; higher is better
        progress   called with (step, steps in all, loss)
        """
        config = self._config
        rng = random.Random(config.seed)
        steps = config.epochs * -(-len(train) // config.batch_size)
        parameters = self._parameters()
        optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _slope(step, steps, config.warmup))
        best, best_score, step = self.snapshot(), float("-inf"), 0
        for _ in range(config.epochs):
            order = list(train)
            rng.shuffle(order)
            for start in range(0, len(order), config.batch_size):
                loss = self._step(order[start : start + config.batch_size])
                torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                step += 1
                progress(step, steps, loss)
            reached = score(self.predict([item.encoding for item in dev]))
            if reached > best_score:
                best, best_score = self.snapshot(), reached
        return best, best_score

    @torch.no_grad()
    def predict(self, encodings: Sequence[Encoding], batch_size: int = 64) -> list[Tensor]:
        """Logits of each input, in order, on the host."""
        order = sorted(range(len(encodings)), key=lambda i: encodings[i].num_tokens)
        logits: list[Tensor] = [torch.empty(0)] * len(encodings)
        weights = self._weights()
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            for i, values in zip(indices, self._logits(weights, [encodings[i] for i in indices]), strict=True):
                logits[i] = values.float().cpu()
        return logits

    def snapshot(self) -> Checkpoint:
        """A detached copy of the checkpoint as it stands."""
        checkpoint = self._checkpoint
        assert checkpoint.head is not None
        head = replace(checkpoint.head, tensors=_copied(checkpoint.head.tensors))
        return replace(checkpoint, tensors=_copied(checkpoint.tensors), head=head)

    def _parameters(self) -> list[Tensor]:
        assert self._checkpoint.head is not None
        return [*self._checkpoint.tensors.values(), *self._checkpoint.head.tensors.values()]

    def _weights(self) -> SlotWeights:
        """The checkpoint as the engine sees it; gradients flow back into its tensors."""
        spec, tensors = lower(self._checkpoint, self._base.info, self._base)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self._base.device, self._base.dtype)
        return view(spec, flat)

    def _logits(self, weights: SlotWeights, encodings: Sequence[Encoding]) -> list[Tensor]:
        """Logits of each input; `encodings` sorted by length."""
        packed = self._base.packer.pack(encodings)
        plan = RoutingPlan({SLOT: weights}, [Route(Leaf(SLOT))] * len(encodings), packed.spans)
        hidden = self._base.forward([Phase(0, packed, plan)])
        rows = [HeadRow(span, encoding) for span, encoding in zip(packed.spans, encodings, strict=True)]
        answers = run_head(_head(weights), hidden, rows, self._base.heads, self._base.stitching.kernels.uncouple)
        return [logits for logits, *_ in answers]

    def _step(self, items: list[Item]) -> float:
        items = sorted(items, key=lambda item: item.encoding.num_tokens)
        weights = self._weights()
        logits = self._logits(weights, [item.encoding for item in items])
        loss = _loss(_head(weights).head.task, logits, [item.target for item in items])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


def _head(weights: SlotWeights) -> HeadWeights:
    [head] = weights.heads
    return head


def _loss(task: Task, logits: list[Tensor], targets: list[Tensor]) -> Tensor:
    if task is Task.MULTI_LABEL:
        return binary_cross_entropy_with_logits(torch.stack(logits).float(), torch.stack(targets).float())
    rows = torch.cat(logits) if logits[0].ndim == 2 else torch.stack(logits)
    return cross_entropy(rows.float(), torch.cat(targets), ignore_index=IGNORED)


def _slope(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then linear decay to zero, as a factor of the learning rate."""
    rising = max(1, int(steps * warmup))
    return (step + 1) / rising if step < rising else max(0.0, (steps - step) / max(1, steps - rising))


def _copied(tensors: dict[str, Tensor] | object) -> dict[str, Tensor]:
    assert isinstance(tensors, dict)
    return {key: tensor.detach().clone() for key, tensor in tensors.items()}
