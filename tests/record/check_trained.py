"""Load what `trained.py` left in AdapterHub's library and compare logits. Runs in that library's environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import adapters.composition as ac
import torch
from adapters import AutoAdapterModel
from safetensors.torch import load_file

TOLERANCE = 1e-4


def main(folder: Path) -> int:
    answers = load_file(folder / "answers.safetensors")
    ids, failed = answers["input_ids"], 0
    for case in json.loads((folder / "cases.json").read_text()):
        name = case["name"]
        try:
            error = float((_logits(folder, case, ids) - answers[name]).abs().max())
        except Exception as problem:  # each case says what went wrong, and the others go on
            said, is_equal = f"{type(problem).__name__}: {problem}", False
        else:
            said, is_equal = f"{error:.1e}", error <= TOLERANCE
        failed += not is_equal
        print(f"{'ok    ' if is_equal else 'FAILED'} {name:24} {case['config']!s:90.90} {said}")
    print(f"{failed} failed")
    return int(failed > 0)


@torch.no_grad()
def _logits(folder: Path, case: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    model = AutoAdapterModel.from_pretrained(folder / "base")
    name = case["name"]
    for below in (*case.get("on", ()), *case.get("fuse", ())):
        model.load_adapter(str(folder / below), use_safetensors=True)
    if "fuse" in case:
        model.load_adapter_fusion(str(folder / name), use_safetensors=True)
        model.load_head(str(folder / name), use_safetensors=True)
        model.set_active_adapters(ac.Fuse(*case["fuse"], name=name))
        model.active_head = name
    else:
        model.load_adapter(str(folder / name), use_safetensors=True)
        model.set_active_adapters(ac.Stack(*case.get("on", ()), name))
        model.active_head = name
    model.eval()
    out = model(input_ids=ids)
    if case["head"] == "question_answering":
        return torch.stack([out.start_logits, out.end_logits], -1)
    logits: torch.Tensor = out.logits
    return logits


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
