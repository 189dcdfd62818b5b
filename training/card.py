"""Model cards: what an adapter is, what it was trained on and how well it does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Card:
    """What `adapterd train` calls the task; score and baseline are test scores in [0, 1].

    The baseline is a linear head on the frozen base.
    """

    name: str
    task: str
    method: str
    head: str
    base: str
    dataset: str
    sizes: dict[str, int]
    metric: str
    score: float
    baseline: float
    labels: tuple[str, ...]
    command: str


def write_card(folder: Path, card: Card) -> None:
    """Write README.md for people and metrics.json for programs."""
    sizes = ", ".join(f"{name} {size:,}" for name, size in card.sizes.items())
    labels = ", ".join(f"`{label}`" for label in card.labels)
    text = f"""# {card.name}

| | |
| --- | --- |
| base | {card.base} |
| method | `{card.method}`, head `{card.head}` |
| data | {card.dataset}: {sizes} |
| test {card.metric} | **{card.score:.4f}** |
| a linear head on the frozen base reaches | {card.baseline:.4f} |
| labels | {labels} |

Made with `{card.command}`. AdapterHub layout, safetensors, float16.
"""
    (folder / "README.md").write_text(text, encoding="utf-8")
    facts = asdict(card) | {"score": round(card.score, 6), "baseline": round(card.baseline, 6)}
    (folder / "metrics.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
