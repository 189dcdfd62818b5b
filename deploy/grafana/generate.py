"""Writes the dashboards: `python deploy/grafana/generate.py`, or with a folder to write to. Needs Python alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import adapters
import engine
import overview
import tenants
from panels import SOURCE, Json, Panel

FOLDER = Path(__file__).parent / "dashboards"
COLUMNS = 24
SCHEMA = 41  # of Grafana 12
TAG = "adapterd"
LINK: Json = {
    "title": TAG,
    "type": "dashboards",
    "tags": [TAG],
    "icon": "dashboard",
    "tooltip": "",
    "asDropdown": False,
    "targetBlank": False,
    "includeVars": True,
    "keepTime": True,
}
ALL: Json = {"selected": True, "text": ["All"], "value": ["$__all"]}


def dashboard(name: str, title: str, text: str, variables: dict[str, str], rows: dict[str, Sequence[Panel]]) -> Json:
    return {
        "uid": f"adapterd-{name}",
        "title": f"adapterd: {title}",
        "description": text,
        "tags": [TAG],
        "links": [LINK],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": SCHEMA,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [_source(), *(_variable(*item) for item in variables.items())]},
        "panels": list(_placed(rows)),
    }


def _placed(rows: dict[str, Sequence[Panel]]) -> Iterator[Json]:
    """Panels in their rows, from left to right as far as there is room, and then below."""
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        place = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            number += 1
            yield _panel(panel, number, {"h": panel.height, "w": panel.width, "x": x, "y": y})
            x, height = x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel, number: int, place: Json) -> Json:
    facts = {"id": number, "type": panel.kind, "title": panel.title, "description": panel.text, "gridPos": place}
    return facts | {"datasource": SOURCE, "targets": panel.targets} | panel.json


def _source() -> Json:
    return {
        "type": "datasource",
        "name": "datasource",
        "label": "Data source",
        "query": "prometheus",
        "refresh": 1,
        "includeAll": False,
        "multi": False,
    }


def _variable(name: str, query: str) -> Json:
    """One or several values of a label; all of them at first."""
    return {
        "type": "query",
        "name": name,
        "label": {"instance": "Server"}.get(name, name.capitalize()),
        "datasource": SOURCE,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "current": ALL,
    }


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for module in (overview, tenants, adapters, engine):
        made = dashboard(module.NAME, module.TITLE, module.TEXT, module.VARIABLES, module.ROWS)
        (folder / f"{module.NAME}.json").write_text(
            json.dumps(made, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
