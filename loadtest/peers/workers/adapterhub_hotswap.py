"""AdapterHub's library with one active adapter and the last few kept: `python adapterhub_hotswap.py JOB.json`.

JOB holds base and folder, names (of adapters, in the order of requests), kept, limit_s, input_ids, and output: a file
that gets {"per_s"}. An adapter that is not among those kept is loaded from its folder, the oldest one is deleted.
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from adapters import AutoAdapterModel


@torch.no_grad()
def main(job: dict[str, Any]) -> None:
    model = AutoAdapterModel.from_pretrained(job["base"]).eval()
    ids = torch.tensor([job["input_ids"]])
    kept: OrderedDict[str, None] = OrderedDict()
    started, done = time.perf_counter(), 0
    for name in job["names"]:
        if name not in kept:
            model.load_adapter(f"{job['folder']}/{name}", use_safetensors=True)
            kept[name] = None
            if len(kept) > job["kept"]:
                oldest, _ = kept.popitem(last=False)
                model.delete_adapter(oldest)
                model.delete_head(oldest)
        kept.move_to_end(name)
        model.set_active_adapters(name)
        model.active_head = name
        model(input_ids=ids)
        done += 1
        if time.perf_counter() - started > job["limit_s"]:
            break
    Path(job["output"]).write_text(json.dumps({"per_s": done / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
