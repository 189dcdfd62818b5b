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


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """N samples in one row of T tokens.

    ids, positions, types   [1, T] int64, on the device
    cu_seqlens              [N+1] int32, on the device; sample i owns tokens cu_seqlens[i] .. cu_seqlens[i+1]
    offsets                 the same numbers on the host
    """

    ids: Tensor
    positions: Tensor
    types: Tensor
    cu_seqlens: Tensor
    offsets: tuple[int, ...]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First and past-the-end token of each sample."""
        return list(zip(self.offsets, self.offsets[1:], strict=False))

    @property
    def num_samples(self) -> int:
        return len(self.offsets) - 1

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
        """(first token, number of samples, length) of each run of neighbours of equal length."""
        runs, start = [], 0
        for length, group in groupby(self.lengths):
            count = len(list(group))
            runs.append((start, count, length))
            start += count * length
        return runs


class Packer:
    """Packs encodings for one base."""

    def __init__(self, base: BaseInfo, position_offset: int, device: torch.device) -> None:
        self._padding_id = position_offset - 1  # RoBERTa gives padding tokens no position of their own
        self._max_tokens = base.max_tokens
        self._device = device

    def pack(self, encodings: Sequence[Encoding]) -> PackedBatch:
        """Concatenate encodings in the order given."""
        offsets = np.zeros(len(encodings) + 1, dtype=np.int32)
        np.cumsum([encoding.num_tokens for encoding in encodings], out=offsets[1:])
        ids = np.concatenate([np.asarray(encoding.input_ids, dtype=np.int64) for encoding in encodings])
        types = np.concatenate([np.asarray(encoding.token_type_ids, dtype=np.int64) for encoding in encodings])
        positions = np.concatenate([self._positions(encoding) for encoding in encodings])
        return PackedBatch(
            ids=self._upload(ids),
            positions=self._upload(positions),
            types=self._upload(types),
            cu_seqlens=self._upload(offsets)[0],
            offsets=tuple(offsets.tolist()),
        )

    def _positions(self, encoding: Encoding) -> NDArray[np.int64]:
        if self._padding_id < 0:
            return np.arange(encoding.num_tokens, dtype=np.int64)
        is_token = (np.asarray(encoding.input_ids) != self._padding_id).astype(np.int64)
        positions: NDArray[np.int64] = np.cumsum(is_token) * is_token + self._padding_id
        return positions

    def _upload(self, array: NDArray[np.int64] | NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True).unsqueeze(0)
