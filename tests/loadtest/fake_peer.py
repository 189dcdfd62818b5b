"""A worker that does as its mode says, and writes into $FAKE_PEER_LOG what it was asked to time."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    texts: list[Any] = []
    for line in sys.stdin:
        command = json.loads(line)
        do, mode = command["do"], command.get("mode", "")
        if do == "load":
            texts = json.loads(Path(command["job"]["texts"]).read_text())
            reply: dict[str, Any] = {
                "versions": {"fake": "1"},
                "rss_bytes": 1 << 20,
                "bytes_per_task": 7,
                "num_tasks": 2,
            }
        elif do == "answer":
            reply = {"answers": _answers(mode, texts, command.get("shift", 0))}
        else:
            reply = {"seconds": _seconds(mode, command["budget"])}
        print(json.dumps(reply), flush=True)


def _answers(mode: str, texts: list[Any], shift: int) -> list[list[float] | None]:
    if mode == "hangs":
        time.sleep(60)
    answers: list[list[float] | None] = [[i + 10.0 * shift, 1.0] for i in range(len(texts))]
    if mode == "wrong":
        answers[1] = [1.5, 1.0]
    if mode == "partial":
        answers[0] = None
    return answers


def _seconds(mode: str, budget: int) -> float:
    with Path(os.environ["FAKE_PEER_LOG"]).open("a") as log:
        log.write(f"{mode} {budget}\n")
    if mode == "crashes":
        sys.exit("out of luck")
    return {"packed": 1.0, "good": 4.0}.get(mode, 2.0) * (3 if budget == 64 else 1)


if __name__ == "__main__":
    main()
