"""Ragged token sequences as one packed row; the only code that knows its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.core import BaseInfo, Encoding
from server.model.launches import Prepared
from server.model.routing import RoutingPlan
from server.model.upload import upload
from server.primitives import Prompt

Array = NDArray[np.int64]
Prepare = Callable[[RoutingPlan, int], Prepared | None]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """N rows end to end, T tokens.

    ids, positions, types   [1, T] int64, on the device
    cu_seqlens              [N+1] int32, on the device; row i owns tokens cu_seqlens[i] .. cu_seqlens[i+1]
    offsets                 the same numbers on the host
    bound                   tokens that no row exceeds, where that has to be the same for other batches too
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    cu_seqlens: Tensor
    offsets: tuple[int, ...]
    bound: int | None = None

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
        return self.bound or max(self.lengths)

    @property
    def equal_length_runs(self) -> list[tuple[int, int, int]]:
        """(first token, number of rows, length) of each run of neighbours of equal length, without empty rows."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            if length:
                runs.append((start, count, length))
            start += count * length
        return runs


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The same on the host: ids, positions and types [T] int64, offsets [N+1] int32."""

    ids: Array
    positions: Array
    types: Array
    offsets: NDArray[np.int32]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and past-the-end token of each row."""
        bounds = self.offsets.tolist()
        return list(zip(bounds, bounds[1:], strict=False))

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """What a pass needs on the device."""
        return [self.ids, self.positions, self.types, self.offsets]

    def on(self, tensors: Sequence[Tensor], bound: int | None = None) -> PackedBatch:
        """`tensors` are the arrays on the device."""
        ids, positions, types, cu_seqlens = tensors
        return PackedBatch(ids[None], positions[None], types[None], cu_seqlens, tuple(self.offsets.tolist()), bound)

    def taken(self, spans: Sequence[tuple[int, int]], gather: Array) -> Rows:
        """The rows at `spans`, in this order; `gather` [T'] lists their tokens."""
        offsets = _offsets([end - start for start, end in spans])
        return Rows(self.ids[gather], self.positions[gather], self.types[gather], offsets)


def _offsets(lengths: Sequence[int]) -> NDArray[np.int32]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def num_prompt_tokens(prompt: Prompt | None) -> int:
    return prompt.embeddings.shape[0] if prompt else 0


def prompt_span(prompt: Prompt | None) -> tuple[int, int]:
    """Where in a row its prompt begins and ends."""
    start = int(prompt.is_after_first) if prompt else 0
    return start, start + num_prompt_tokens(prompt)


class Packer:
    """Packs encodings for one base.

    prepare   what the backend makes of a plan over so many tokens
    """

    def __init__(self, base: BaseInfo, position_offset: int, device: torch.device, prepare: Prepare) -> None:
        self.prepare = prepare
        self._offset = position_offset
        self._padding_id = position_offset - 1  # RoBERTa gives padding tokens no position of their own
        self._device = device

    def pack(self, encodings: Sequence[Encoding]) -> PackedBatch:
        """Concatenate encodings in the order given, on the device."""
        rows = self.rows(encodings)
        return rows.on(upload(rows.arrays, self._device))

    def rows(
        self,
        encodings: Sequence[Encoding],
        prompts: Sequence[Prompt | None] | None = None,
        shifts: Sequence[int] | None = None,
    ) -> Rows:
        """Concatenate encodings in the order given, with room for the prompt of each and its positions shifted."""
        none, zeros = [None] * len(encodings), [0] * len(encodings)
        rows = [self._row(*row) for row in zip(encodings, prompts or none, shifts or zeros, strict=True)]
        ids, positions, types = (np.concatenate(column) for column in zip(*rows, strict=True))
        return Rows(ids, positions, types, _offsets([len(own) for own, _, _ in rows]))

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
