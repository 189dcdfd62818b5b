"""How many replicas there are to be: by how busy the devices are, and how long work waits for them.

Serve's own policy counts requests, and sees none of these: they do not pass through it. Each replica says what its
server's metrics say, and Serve asks `desired`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from server.top.scrape import Labels, Scrape

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

BUSY, QUEUE_S, TOKENS_PER_S = "busy", "queue_s", "tokens_per_s"
TARGET_BUSY = 0.7  # of the time; what is left takes the next burst
MAX_QUEUE_S = 0.1  # mean wait for a batch, on the replica where it is longest
UP_S, DOWN_S = 5.0, 120.0  # how long it has to be so
LOOK_BACK_S = 15.0  # more than Serve's 10 s between questions

COMPUTE, TOKENS = "compute_seconds_total", "batch_tokens_sum"
WAITED, NUM_WAITED = "request_duration_seconds_sum", "request_duration_seconds_count"
QUEUE: Labels = {"stage": "queue"}  # of these two
ALL: Labels = {}


def load_between(before: Scrape, after: Scrape) -> dict[str, float]:
    """What a server did between two looks at its metrics.

    busy           share of the time that its device computed
    tokens_per_s   that it computed
    queue_s        mean wait of requests for a batch; 0 where none came
    """
    seconds = max(1e-9, after.at - before.at)

    def difference(name: str, labels: Labels = ALL) -> float:
        return max(0.0, after.value(name, **labels) - before.value(name, **labels))

    num_waited = difference(NUM_WAITED, QUEUE)
    return {
        BUSY: min(1.0, difference(COMPUTE) / seconds),
        TOKENS_PER_S: difference(TOKENS) / seconds,
        QUEUE_S: difference(WAITED, QUEUE) / num_waited if num_waited else 0.0,
    }


def num_wanted(num_replicas: int, busy: list[float], queue_s: list[float]) -> int:
    """So many that each is busy for `TARGET_BUSY`; one more than there are where work waits for too long."""
    wanted = max(1, math.ceil(sum(busy) / TARGET_BUSY))
    return max(wanted, num_replicas + 1) if max(queue_s, default=0.0) > MAX_QUEUE_S else wanted


def desired(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """The policy as Serve asks it; bounds and delays are Serve's to keep."""
    metrics = context.aggregated_metrics or {}
    busy = list(metrics.get(BUSY, {}).values())
    if len(busy) < context.current_num_replicas:  # not all have spoken yet
        return context.target_num_replicas, {}
    return num_wanted(context.current_num_replicas, busy, list(metrics.get(QUEUE_S, {}).values())), {}
