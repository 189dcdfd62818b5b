"""How fast the device computes, and how far it is with the batch that it computes."""

from __future__ import annotations

import time

RATE_SHARE = 0.2  # of the newest batch, in what is known of the device's pace


class Progress:
    """`tokens_per_s` is of the last batches that filled the device; 0 before the first."""

    def __init__(self) -> None:
        self.tokens_per_s = 0.0
        self._ends_at = 0.0

    def begin(self, num_tokens: int) -> None:
        """The device computes a batch of so many tokens from now on."""
        seconds = num_tokens / self.tokens_per_s if self.tokens_per_s else 0.0
        self._ends_at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds to the end of that batch, at least: one that does not fill the device takes longer for each token."""
        return self._ends_at - time.monotonic()

    def measure(self, num_tokens: int, compute_s: float) -> None:
        """A batch that filled the device is done."""
        if compute_s > 0:
            rate = num_tokens / compute_s
            self.tokens_per_s += (rate - self.tokens_per_s) * (RATE_SHARE if self.tokens_per_s else 1.0)
