"""What deploy/ has for Prometheus and Grafana, read as tests need it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from server.metrics import Metrics

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
ADAPTER = ROOT / "deploy" / "kubernetes" / "overlays" / "cluster" / "prometheus-adapter-values.yaml"
OPERATIONS = ROOT / "docs" / "operations.md"
TOKEN_FILE = "/etc/prometheus/adapterd-token"
CLAUSE = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w.])([a-zA-Z_:][\w:]*)(\{[^}]*\})?(?!\s*\()(?![\w:{])")
WINDOW = re.compile(r"\[[^\]]*\]")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
WORDS = ("and", "or", "unless", "bool", "offset")


@dataclass(frozen=True, slots=True)
class Expression:
    """PromQL of a panel, a variable or a rule. `shown` are the labels that a legend or an annotation names."""

    where: str
    text: str
    shown: tuple[str, ...] = ()

    @property
    def selectors(self) -> list[str]:
        """Each metric with its matchers, as a query of its own."""
        text = WINDOW.sub("", CLAUSE.sub("", self.text))
        return [name + (where or "") for name, where in SELECTOR.findall(text) if name not in WORDS]

    @property
    def metrics(self) -> set[str]:
        return {selector.partition("{")[0] for selector in self.selectors}

    @property
    def labels(self) -> set[str]:
        """All that it matches or groups by."""
        grouped = {name.strip() for clause in CLAUSE.findall(self.text) for name in clause.split(",")}
        braces = re.findall(r"\{([^}]*)\}", self.text)
        return {*grouped, *(name for inside in braces for name in MATCHER.findall(inside))} - {""}


@dataclass(frozen=True, slots=True)
class Rule(Expression):
    """A recording rule (`name` has colons) or an alert."""

    name: str = ""
    raw: Any = None

    @property
    def is_alert(self) -> bool:
        return "alert" in self.raw


def rules() -> list[Rule]:
    found = []
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            for raw in group["rules"]:
                shown = re.findall(r"\$labels\.(\w+)", json.dumps(raw.get("annotations", "")))
                name = raw.get("record") or raw["alert"]
                found.append(Rule(f"{file.name}: {name}", raw["expr"], tuple(shown), name, raw))
    return found


def alerts() -> list[Rule]:
    return [rule for rule in rules() if rule.is_alert]


def dashboards() -> dict[str, Any]:
    """By file."""
    return {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(dashboard: Any) -> list[Any]:
    """Without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries() -> Iterator[Expression]:
    """Of every panel, with Grafana's variables in them."""
    for file, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                shown = tuple(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                yield Expression(f"{file}: {panel['title']}", target["expr"], shown)


def variables() -> dict[str, str]:
    """The queries that fill them, by name."""
    listed = [variable for dashboard in dashboards().values() for variable in dashboard["templating"]["list"]]
    return {variable["name"]: variable["query"] for variable in listed if variable["type"] == "query"}


def autoscaled(group: str, matchers: str) -> Iterator[Expression]:
    """Of every metric that the autoscaler reads, with what prometheus-adapter puts into its templates."""
    for rule in yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]:
        text = rule["metricsQuery"].replace("<<.GroupBy>>", group).replace("<<.LabelMatchers>>", matchers)
        yield Expression(f"{ADAPTER.name}: {rule['name']['as']}", text)


def exported() -> set[str]:
    """Every metric of the server, by the name that the documents use."""
    suffix = {"counter": "_total", "info": "_info"}
    return {metric.name + suffix.get(metric.type, "") for metric in Metrics().registry.collect()}


def family(name: str) -> str:
    """The metric that a series belongs to."""
    return re.sub(r"_(?:bucket|sum|count)$", "", name)


def configuration(folder: Path, target: str, token: str = "none", interval: str = "1s") -> Path:
    """The shipped prometheus.yml in a folder of its own, for another server and a shorter interval."""
    (folder / "adapterd-token").write_text(token)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(config["global"], interval)
    config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
    [job] = config["scrape_configs"]
    assert job["authorization"]["credentials_file"] == TOKEN_FILE
    job["authorization"]["credentials_file"] = str(folder / "adapterd-token")
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    return folder / "prometheus.yml"
