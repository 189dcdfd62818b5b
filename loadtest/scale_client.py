"""`python -m loadtest.scale_client HOST:PORT CALLS`: what a client of a large cluster holds, as JSON.

Calls ask for adapters that nobody has: what is measured is the way there.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from adapterd import AsyncClient, Error
from adapterd.cluster import SCHEME
from loadtest.children import memory_mib

AT_A_TIME = 64


async def measure(seed: str, num_calls: int) -> dict[str, float]:
    names = iter(range(num_calls))
    before = memory_mib()
    async with AsyncClient(f"{SCHEME}{seed}") as client:

        async def ask(name: str) -> None:
            try:
                await client.predict(name, tokens=[[1]], timeout=60)
            except Error as error:
                if error.reason != "ADAPTER_NOT_FOUND":
                    raise

        async def caller() -> None:
            for number in names:
                await ask(f"tenant-{number}")

        started = time.monotonic()
        await ask("tenant")
        first_s = time.monotonic() - started
        ring_mib = memory_mib() - before
        started = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(AT_A_TIME)))
        all_s = time.monotonic() - started
        names = iter(range(num_calls))
        started = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(AT_A_TIME)))
        warm_s = time.monotonic() - started
        held_mib = memory_mib() - before
    return {"first_s": first_s, "ring_mib": ring_mib, "held_mib": held_mib, "cold_s": all_s, "warm_s": warm_s}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2])))))
