"""Panels as Grafana's JSON, and the expressions in them. What all panels have in common is said here once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Steps = Sequence[tuple[float, str]]  # of colours, each from a value on; green below the first

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
SERVERS = 'instance=~"$instance"'
LAST: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}


@dataclass(frozen=True, slots=True)
class Query:
    """has_exemplars   ask for traces of single requests too"""

    expr: str
    legend: str = ""
    has_exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel without its place. `json` is what its kind adds to what all have."""

    kind: str
    title: str
    text: str
    targets: list[Json]
    width: int
    height: int
    json: Json = field(default_factory=dict)


# expressions: of the servers that are chosen, summed over what `by` does not name


def of(name: str, where: str = "") -> str:
    return f"{name}{{{', '.join(filter(None, (SERVERS, where)))}}}"


def now(name: str, by: str = "", where: str = "") -> str:
    return f"{_sum(by)} ({of(name, where)})"


def rate(name: str, by: str = "", where: str = "") -> str:
    return f"{_sum(by)} (rate({of(name, where)}[$__rate_interval]))"


def grown(name: str, by: str = "", where: str = "") -> str:
    """In all of the time that is shown."""
    return f"{_sum(by)} (increase({of(name, where)}[$__range]))"


def quantile(q: float, name: str, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', labels, where)})"


def mean(name: str, by: str = "", where: str = "") -> str:
    return ratio(rate(f"{name}_sum", by, where), rate(f"{name}_count", by, where))


def ratio(part: str, whole: str) -> str:
    return f"{part} / ({whole} > 0)"


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


# panels


def stat(title: str, text: str, expr: str, unit: str, steps: Steps = (), below: str = "green", width: int = 4) -> Panel:
    """The last value, coloured; `below` is the colour under the first step."""
    options = {
        "reduceOptions": LAST,
        "orientation": "auto",
        "textMode": "auto",
        "wideLayout": True,
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "showPercentChange": False,
        "percentChangeColorMode": "standard",
    }
    defaults = {"unit": unit, "color": {"mode": "thresholds"}, "thresholds": _thresholds(steps, below)}
    return Panel("stat", title, text, _targets([Query(expr)]), width, 4, _json(defaults, options))


def graph(
    title: str,
    text: str,
    queries: Sequence[Query],
    unit: str,
    *,
    width: int = 8,
    stacking: str = "none",
    limit: float | None = None,
    most: float | None = None,
) -> Panel:
    """Lines over time.

    stacking   "normal" adds them up, "percent" shows shares
    limit      a dashed line: where an alert begins, or more is not possible
    most       upper end of the axis
    """
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 10 if stacking == "none" else 40,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": stacking, "group": "A"},
        "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
    }
    steps: Steps = () if limit is None else ((limit, "red"),)
    defaults = {
        "unit": unit,
        "min": 0,
        "color": {"mode": "palette-classic"},
        "thresholds": _thresholds(steps),
        "custom": custom,
    }
    if most is not None:
        defaults["max"] = most
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel("timeseries", title, text, _targets(queries), width, 8, _json(defaults, options))


def heatmap(title: str, text: str, name: str, unit: str, where: str = "", width: int = 8) -> Panel:
    """The buckets of a histogram over time, in each the number that fell into it."""
    expr = f"sum by (le) (increase({of(f'{name}_bucket', where)}[$__rate_interval]))"
    color = {"mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "exponent": 0.5, "steps": 64}
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": color | {"scale": "exponential", "reverse": False},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
    }
    custom = {"scaleDistribution": {"type": "linear"}, "hideFrom": {"legend": False, "tooltip": False, "viz": False}}
    targets = _targets([Query(expr, "{{le}}")], format="heatmap")
    return Panel("heatmap", title, text, targets, width, 8, _json({"custom": custom}, options))


def table(title: str, text: str, columns: Sequence[tuple[str, str]], width: int = 24, height: int = 8) -> Panel:
    """A row for each set of labels. `columns` are headings with an expression each; "" shows labels alone."""
    targets = _targets([Query(expr) for _, expr in columns], format="table", instant=True, range=False)
    is_single = len(columns) == 1
    values = {f"Value #{target['refId']}": name for target, (name, _) in zip(targets, columns, strict=True)}
    names = {"Value": columns[0][0]} if is_single else values
    hidden = {"Time": True, "__name__": True, "job": True} | {value: True for value, name in names.items() if not name}
    shown = {value: name for value, name in names.items() if name}
    transformations: list[Json] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": shown}},
    ]
    custom = {"align": "auto", "inspect": False, "filterable": True}
    options = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0}
    json = _json({"unit": "short", "decimals": 0, "custom": custom}, options) | {"transformations": transformations}
    return Panel("table", title, text, targets, width, height, json)


def _targets(queries: Sequence[Query], **more: Any) -> list[Json]:
    return [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "exemplar": query.has_exemplars,
            "format": "time_series",
            "instant": False,
            "range": True,
        }
        | more
        for number, query in enumerate(queries)
    ]


def _thresholds(steps: Steps, below: str = "green") -> Json:
    first: Json = {"color": below, "value": None}
    return {"mode": "absolute", "steps": [first, *({"color": color, "value": value} for value, color in steps)]}


def _json(defaults: Json, options: Json) -> Json:
    return {"fieldConfig": {"defaults": defaults, "overrides": []}, "options": options}
