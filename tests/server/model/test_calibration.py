"""The budget is the knee of the measured curve."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from server.model.calibration import LENGTH, SMALLEST, calibrate


class Device:
    """Takes `fixed_s` per batch and `per_token_s` per token, plus more beyond `slow_from` tokens."""

    def __init__(self, fixed_s: float, per_token_s: float, slow_from: int = 1 << 30) -> None:
        self.now = 0.0
        self.largest = 0
        self._cost: Callable[[int], float] = lambda tokens: (
            fixed_s + per_token_s * tokens * (2 if tokens > slow_from else 1)
        )

    def run(self, num_samples: int) -> None:
        self.largest = max(self.largest, num_samples * LENGTH)
        self.now += self._cost(num_samples * LENGTH)


def _budget(device: Device, max_samples: int = 1 << 20) -> int:
    return calibrate(device.run, max_samples, clock=lambda: device.now).budget_tokens


@pytest.mark.parametrize("fixed_tokens", (16, 100, 400))
def test_budget_is_the_smallest_batch_that_is_nearly_as_fast_as_any(fixed_tokens: int) -> None:
    per_token_s = 1e-7
    budget = _budget(Device(fixed_tokens * per_token_s, per_token_s))
    share = budget / (budget + fixed_tokens)  # of the rate of an endless batch
    assert share >= 0.92
    assert budget == SMALLEST or (budget / 2) / (budget / 2 + fixed_tokens) < 0.97


def test_batches_that_no_longer_fit_a_cache_are_not_chosen() -> None:
    assert _budget(Device(1e-4, 1e-6, slow_from=1024)) == 1024


def test_slow_devices_are_not_measured_for_long() -> None:
    device = Device(0.1, 1e-3)
    calibrate(device.run, 1 << 20, clock=lambda: device.now)
    assert device.now < 5


def test_no_batch_is_larger_than_the_limit_of_samples() -> None:
    device = Device(1.0e-3, 1e-9)
    assert _budget(device, max_samples=16) <= 16 * LENGTH
    assert device.largest <= 16 * LENGTH
