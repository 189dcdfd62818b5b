"""What each head is trained to bring down, as AdapterHub's library defines it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from server.errors import InvalidInput
from server.primitives import Task

IGNORED = -100  # label of tokens that carry none


def _classes(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels.view(-1))


def _multi_label(logits: Tensor, labels: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, labels.float())


def _regression(logits: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(logits.view(-1), labels.float().view(-1))


def _tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, T, C] and [B, T]"""
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED)


def span_loss(logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Of answers: the mean over first and last token. logits [B, T, 2]; positions past the end do not count."""
    length = logits.shape[1]
    parts = [
        cross_entropy(logits[..., i], positions.view(-1).clamp(0, length), ignore_index=length)
        for i, positions in enumerate((starts, ends))
    ]
    return torch.stack(parts).mean()


LOSSES: Mapping[Task, Callable[[Tensor, Tensor], Tensor]] = {
    Task.CLASSIFICATION: _classes,
    Task.MULTIPLE_CHOICE: _classes,
    Task.MULTI_LABEL: _multi_label,
    Task.REGRESSION: _regression,
    Task.TOKEN_CLASSIFICATION: _tokens,
    Task.FILL_MASK: _tokens,
}


def loss_of(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """logits [B, C] with labels [B] or [B, C], or [B, T, C] with [B, T]. Raises InvalidInput for a task without one."""
    if task not in LOSSES:
        raise InvalidInput(f"a head for {task.value} is not trained from labels; trained are {_known()}")
    return LOSSES[task](logits.float(), labels)


def _known() -> str:
    return ", ".join(task.value for task in (*LOSSES, Task.QUESTION_ANSWERING))
