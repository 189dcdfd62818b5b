"""Train an adapter of every method and head for a moment, with what it answers, for AdapterHub's library to check.

python tests/record/trained.py build/trained
build/adapterhub/bin/python tests/record/check_trained.py build/trained
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from make_adapters import configs_for, make_adapter  # noqa: E402
from make_bases import save_base  # noqa: E402

from training.stitch import AdapterModel, stitch  # noqa: E402

LENGTH, ROWS = 9, 4
HEADS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "classification": ({"head_type": "classification", "layers": 2}, ("no", "yes")),
    "multilabel": ({"head_type": "multilabel_classification"}, ("a", "b", "c")),
    "tagging": ({"head_type": "tagging"}, ("O", "B-x", "I-x")),
    "question_answering": ({"head_type": "question_answering"}, ()),
    "masked_lm": ({"head_type": "masked_lm"}, ()),
}


def main(folder: Path) -> None:
    base = save_base(folder / "base")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 70, (ROWS, LENGTH), generator=generator)
    cases: list[dict[str, Any]] = []
    answers: dict[str, torch.Tensor] = {"input_ids": ids}
    info = stitch(AutoModel.from_pretrained(base), "x").base.info
    frozen = {
        name: make_adapter(folder / name, info, config=config, seed=seed)
        for seed, (name, config) in enumerate(
            {
                "lang": "seq_bn_inv[reduction_factor=4]",
                "m1": "seq_bn[reduction_factor=4]",
                "m2": "seq_bn[reduction_factor=4]",
            }.items()
        )
    }
    assert frozen
    plans: list[tuple[str, Any, str, dict[str, Any]]] = [
        (f"method{i}", config, "classification", {}) for i, config in enumerate(configs_for(info))
    ]
    plans += [(f"head_{kind}", "seq_bn[reduction_factor=4]", kind, {}) for kind in HEADS]
    plans += [("stacked", "seq_bn[reduction_factor=4]", "tagging", {"on": [folder / "lang"]})]
    plans += [("fused", "dynamic", "classification", {"fuse": [folder / "m1", folder / "m2"]})]
    for name, config, kind, more in plans:
        head, labels = HEADS[kind]
        model = stitch(AutoModel.from_pretrained(base), name, config, head=head, labels=labels, **more)
        _train(model, ids, kind, len(labels))
        model.save_adapter(folder / name)
        with torch.no_grad():
            out = model(input_ids=ids)
        logits = torch.stack([out.start_logits, out.end_logits], -1) if out.logits is None else out.logits
        answers[name] = logits.contiguous()
        composed = {key: [path.name for path in value] for key, value in more.items()}
        cases.append({"name": name, "config": config, "head": kind, **composed})
    save_file(answers, folder / "answers.safetensors")
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))
    print(f"{len(cases)} adapters in {folder}")


def _train(model: AdapterModel, ids: torch.Tensor, kind: str, num_labels: int) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    per_token = torch.randint(0, max(2, num_labels), ids.shape)
    labels: dict[str, dict[str, torch.Tensor]] = {
        "classification": {"labels": per_token[:, 0]},
        "multilabel": {"labels": per_token[:, :num_labels].clamp(max=1).float()},
        "tagging": {"labels": per_token},
        "masked_lm": {"labels": per_token},
        "question_answering": {
            "start_positions": torch.tensor([0, 2, 1, 0]),
            "end_positions": torch.tensor([1, 4, 3, 1]),
        },
    }
    for _ in range(3):
        model(input_ids=ids, **labels[kind]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
