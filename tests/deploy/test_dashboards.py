"""The shipped dashboards: as they were generated, importable, and about every metric that there is."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from shipped import GRAFANA, ROOT, dashboards, exported, family, panels, queries, rules, variables

DOCUMENT = (ROOT / "docs" / "dashboards.md").read_text()
DASHBOARDS = dashboards()
COLUMNS = 24
UNITS = {"none", "short", "reqps", "ops", "percentunit", "s", "µs", "bytes"}
BUILT_IN = {"__rate_interval", "__range"}
OPTIONS = {
    "stat": {"reduceOptions", "colorMode", "graphMode", "textMode"},
    "timeseries": {"legend", "tooltip"},
    "heatmap": {"calculate", "color", "yAxis", "tooltip", "legend", "exemplars"},
    "table": {"showHeader", "frameIndex"},
}

each = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)


def test_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True, timeout=60)
    made, shipped = [
        {path.name: path.read_text() for path in folder.iterdir()} for folder in (tmp_path, GRAFANA / "dashboards")
    ]
    assert made == shipped, "run make dashboards"


def test_there_are_four_that_lead_to_each_other() -> None:
    assert DASHBOARDS.keys() == {"overview.json", "tenants.json", "adapters.json", "engine.json"}
    assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == 4
    for dashboard in DASHBOARDS.values():
        [link] = dashboard["links"]
        assert link["type"] == "dashboards" and link["includeVars"] and link["keepTime"]
        assert set(link["tags"]) <= set(dashboard["tags"])


@each
def test_panels_fill_a_grid_without_overlap(dashboard: Any) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in places)
    for one, other in combinations(places, 2):
        is_beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        is_below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert is_beside or is_below, (one, other)
    for y in {place["y"] for place in places}:
        line = [place for place in places if place["y"] == y]
        assert len({place["h"] for place in line}) == 1 and sum(place["w"] for place in line) == COLUMNS


@each
def test_panels_have_what_grafana_reads(dashboard: Any) -> None:
    assert dashboard["schemaVersion"] >= 39 and "id" not in dashboard
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for panel in panels(dashboard):
        assert panel["options"].keys() >= OPTIONS[panel["type"]], panel["title"]
        assert panel["fieldConfig"].keys() == {"defaults", "overrides"}
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
        assert len({target["expr"] for target in panel["targets"]}) == len(panel["targets"])


@each
def test_panels_say_what_they_show_and_in_which_unit(dashboard: Any) -> None:
    titles = [(row, panel["title"]) for row, panel in _with_rows(dashboard)]
    assert len(set(titles)) == len(titles)
    for panel in panels(dashboard):
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
        assert defaults.get("unit", options.get("yAxis", {}).get("unit")) in UNITS, panel["title"]
        for step, following in combinations(defaults.get("thresholds", {"steps": []})["steps"], 2):
            assert step["value"] is None or step["value"] < following["value"]


def _with_rows(dashboard: Any) -> list[tuple[str, Any]]:
    row, found = "", []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        else:
            found.append((row, panel))
    return found


@each
def test_nothing_is_bound_to_one_installation(dashboard: Any) -> None:
    declared = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "instance"} <= declared
    for holder in [*panels(dashboard), *(t for panel in panels(dashboard) for t in panel["targets"])]:
        assert holder["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(dashboard):
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= declared | BUILT_IN, target["expr"]
            assert "instance" in used or "ALERTS" in target["expr"], target["expr"]
            assert not re.search(r"\[\d", target["expr"]), "a window fits the zoom: $__rate_interval"


@each
def test_latencies_lead_to_traces(dashboard: Any) -> None:
    of_requests = "adapterd_request_duration_seconds_bucket"
    for panel in panels(dashboard):
        if panel["type"] == "timeseries":
            targets = [target for target in panel["targets"] if of_requests in target["expr"]]
            assert all(target["exemplar"] for target in targets), panel["title"]


def test_sizes_of_batches_are_heatmaps() -> None:
    shown = [panel["targets"][0] for panel in panels(DASHBOARDS["engine.json"]) if panel["type"] == "heatmap"]
    assert all(target["format"] == "heatmap" for target in shown)
    names = {family(name) for target in shown for name in re.findall(r"adapterd_\w+", target["expr"])}
    assert {"adapterd_batch_samples", "adapterd_batch_tokens", "adapterd_batch_adapters"} <= names


def test_metrics_that_are_used_exist() -> None:
    used = {name for expression in (*queries(), *rules()) for name in expression.metrics if ":" not in name}
    used |= {name for query in variables().values() for name in re.findall(r"adapterd_\w+", query)}
    known = exported()
    assert {name for name in used if family(name) not in known and name not in known} == {"up", "ALERTS"}


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {family(name) for query in queries() for name in query.metrics}
    assert exported() - shown == set()


def test_metrics_in_the_document_exist() -> None:
    named = set(re.findall(r"`((?:\w+:)?adapterd_\w+(?::\w+)?)", DOCUMENT))
    recorded = {rule.name for rule in rules()}
    assert {name for name in named if family(name) not in exported() | recorded} == set()


def test_the_document_has_every_dashboard() -> None:
    for file, dashboard in DASHBOARDS.items():
        assert file in DOCUMENT and all(row["title"] for row in dashboard["panels"])


def test_provisioning_finds_dashboards_and_a_source() -> None:
    files = {path: yaml.safe_load(path.read_text()) for path in (GRAFANA / "provisioning").rglob("*.yaml")}
    [source] = [one for content in files.values() for one in content.get("datasources", ())]
    [provider] = [one for content in files.values() for one in content.get("providers", ())]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    assert (provider["type"], provider["options"]["path"]) == ("file", "/var/lib/grafana/dashboards/adapterd")
    assert provider["options"]["path"] in DOCUMENT
