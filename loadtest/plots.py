"""Pictures for reports: SVG that takes the page's own text colour, and the same as a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

SIZE = (7.2, 3.8)  # inches
# Readable on white and on black; lines also differ by marker or dash, for who does not tell the colours apart.
COLORS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#a3803b")
DASHES = ("-", "--", "-.", ":")
TEXT = "#010203"  # stands for the page's text colour until the SVG is written


def svg_of(draw: Draw, name: str, size: tuple[float, float] = SIZE) -> str:
    """An `<svg>` element without fixed size. `name` tells its ids from those of other pictures on the page."""
    buffer = StringIO()
    _save(
        draw, size, buffer, TEXT, {"svg.fonttype": "none", "svg.hashsalt": name}, format="svg", metadata={"Date": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT, "currentColor")
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


def save_png(draw: Draw, path: Path, size: tuple[float, float] = SIZE) -> None:
    """The same on white."""
    _save(draw, size, path, "black", {}, dpi=130)


def _save(draw: Draw, size: tuple[float, float], target: Any, text: str, settings: dict[str, Any], **how: Any) -> None:
    plt = _pyplot()
    with plt.rc_context({**_style(plt, text), **settings}):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes)
        figure.savefig(target, transparent=text == TEXT, **how)
        plt.close(figure)


def _style(plt: Any, text: str) -> dict[str, Any]:
    colored = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    return {
        **dict.fromkeys(colored, text),
        "axes.prop_cycle": plt.cycler(color=COLORS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.15,
        "legend.frameon": False,
        "legend.fontsize": "small",
        "font.size": 11,
    }


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError("plots need matplotlib: pip install 'adapterd[dev]', or leave out --output") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
