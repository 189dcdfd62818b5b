"""How long to leave alone what failed: twice as long each time in a row. Pure."""

from __future__ import annotations

MAX_S = 60.0
_MAX_DOUBLINGS = 6  # beyond it the limit counts, and a float would overflow in the end


def back_off_s(num_before: int) -> float:
    """Seconds after a failure that so many came before, in a row: 1, 2, 4, ... and a minute at most."""
    return min(MAX_S, 2.0 ** min(num_before, _MAX_DOUBLINGS))
