"""Ragged token sequences as one packed row; the only code that knows its layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core import BaseInfo, Encoding
from server.primitives import Prompt

Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """N rows end to end, T tokens.

    ids, positions, types   [1, T] int64, on the device
    cu_seqlens              [N+1] int32, on the device; row i owns tokens cu_seqlens[i] .. cu_seqlens[i+1]
    offsets                 the same numbers on the host
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    cu_seqlens: Tensor
    offsets: tuple[int, ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and past-the-end token of each row."""
        return list(zip(self.offsets, self.offsets[1:], strict=False))

    @property
    def num_tokens(self) -> int:
        return self.offsets[-1]

    @property
    def lengths(self) -> list[int]:
        return [end - start for start, end in self.spans]

    @property
    def max_length(self) -> int:
        return max(self.lengths)

    @property
    def equal_length_runs(self) -> list[tuple[int, int, int]]:
        """(first token, number of rows, length) of each run of neighbours of equal length."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            runs.append((start, count, length))
            start += count * length
        return runs

    def taken(self, spans: Sequence[tuple[int, int]], gather: Tensor) -> PackedBatch:
        """The rows at `spans`, in this order; `gather` [T'] lists their tokens."""
        offsets = np.zeros(len(spans) + 1, dtype=np.int32)
        np.cumsum([end - start for start, end in spans], out=offsets[1:])
        cu_seqlens = torch.from_numpy(offsets).to(self.cu_seqlens.device)
        ids, positions, types = (x[:, gather] for x in (self.ids, self.positions, self.types))
        return PackedBatch(ids, positions, types, cu_seqlens, tuple(offsets.tolist()))


def num_prompt_tokens(prompt: Prompt | None) -> int:
    return prompt.embeddings.shape[0] if prompt else 0


def prompt_span(prompt: Prompt | None) -> tuple[int, int]:
    """Where in a row its prompt begins and ends."""
    start = int(prompt.is_after_first) if prompt else 0
    return start, start + num_prompt_tokens(prompt)


class Packer:
    """Packs encodings for one base."""

    def __init__(self, base: BaseInfo, position_offset: int, device: torch.device) -> None:
        self._offset = position_offset
        self._padding_id = position_offset - 1  # RoBERTa gives padding tokens no position of their own
        self._device = device

    def pack(
        self,
        encodings: Sequence[Encoding],
        prompts: Sequence[Prompt | None] | None = None,
        shifts: Sequence[int] | None = None,
    ) -> PackedBatch:
        """Concatenate encodings in the order given, with room for the prompt of each and its positions shifted."""
        none, zeros = [None] * len(encodings), [0] * len(encodings)
        rows = [self._row(*row) for row in zip(encodings, prompts or none, shifts or zeros, strict=True)]
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(ids) for ids, _, _ in rows], out=offsets[1:])
        ids, positions, types = (np.concatenate(column) for column in zip(*rows, strict=True))
        return PackedBatch(
            ids=self._upload(ids),
            positions=self._upload(positions),
            types=self._upload(types),
            cu_seqlens=self._upload(offsets)[0],
            offsets=tuple(offsets.tolist()),
        )

    def _row(self, encoding: Encoding, prompt: Prompt | None, shift: int) -> tuple[Array, Array, Array]:
        ids = np.asarray(encoding.input_ids, dtype=np.int64)
        types = np.asarray(encoding.token_type_ids, dtype=np.int64)
        positions = self._positions(ids)
        positions = positions + shift * (positions > self._padding_id)
        if prompt is None:
            return ids, positions, types
        place, room = int(prompt.is_after_first), num_prompt_tokens(prompt)
        ids, types = (np.insert(x, [place] * room, 0) for x in (ids, types))
        if prompt.is_before_embeddings:  # the prompt is part of the sequence that positions count
            return ids, np.arange(len(ids), dtype=np.int64) + self._offset, types
        return ids, np.insert(positions, [place] * room, 0), types

    def _positions(self, ids: Array) -> Array:
        if self._padding_id < 0:
            return np.arange(len(ids), dtype=np.int64)
        is_token = (ids != self._padding_id).astype(np.int64)
        positions: Array = np.cumsum(is_token) * is_token + self._padding_id
        return positions

    def _upload(self, array: Array | NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True).unsqueeze(0)
