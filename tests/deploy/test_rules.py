"""Prometheus' own tools on the shipped configuration and rules, and what they do not look at."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from components import component
from shipped import PROMETHEUS, ROOT, Rule, alerts, configuration, rules

DOCUMENT = (ROOT / "docs" / "dashboards.md").read_text()
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTS, RECORDED = alerts(), [rule for rule in rules() if not rule.is_alert]


def promtool(*arguments: str | Path) -> str:
    command = [component("prometheus", "promtool"), *arguments]
    done = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_configuration_is_valid_with_the_rules_that_it_names(tmp_path: Path) -> None:
    said = promtool("check", "config", configuration(tmp_path, "adapterd:9090"))
    assert f"{len(list((PROMETHEUS / 'rules').glob('*.yml')))} rule files found" in said


def test_rules_are_valid() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", *sorted((PROMETHEUS / "rules").glob("*.yml")))


@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_tests_say(file: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", file)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    cases = defaultdict(set)
    for file in TESTS:
        for group in yaml.safe_load(file.read_text())["tests"]:
            for case in group.get("alert_rule_test", ()):
                cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert cases == {rule.name: {True, False} for rule in ALERTS}


def test_every_recorded_series_is_computed_in_a_test() -> None:
    groups = [group for file in TESTS for group in yaml.safe_load(file.read_text())["tests"]]
    asked = [case["expr"] for group in groups for case in group.get("promql_expr_test", ())]
    assert [rule.name for rule in RECORDED if not any(rule.name in expr for expr in asked)] == []


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_how_urgent_it_is_what_happened_and_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"Adapterd(?:[A-Z][a-z]+)+", rule.name)
    assert rule.raw["labels"].keys() == {"severity"}
    assert rule.raw["labels"]["severity"] in ("critical", "warning", "info")
    annotations = rule.raw["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook"}
    if rule.name != "AdapterdAbsent":  # which has no server to name
        assert "{{ $labels.instance }}" in annotations["summary"] or "digest" in rule.shown
    assert annotations["runbook"] == f"docs/dashboards.md#{rule.name.lower()}"


def test_every_alert_is_in_the_document_with_its_urgency() -> None:
    rows = re.findall(r"^\| \[(Adapterd\w+)\]\(#(\w+)\) \| (\w+) \|", DOCUMENT, re.MULTILINE)
    assert rows == [(rule.name, rule.name.lower(), rule.raw["labels"]["severity"]) for rule in ALERTS]
    assert re.findall(r"^### (Adapterd\w+)$", DOCUMENT, re.MULTILINE) == [rule.name for rule in ALERTS]


@pytest.mark.parametrize("rule", RECORDED, ids=lambda rule: rule.name)
def test_recorded_series_are_named_as_prometheus_names_them(rule: Rule) -> None:
    name = re.fullmatch(r"instance[a-z_]*:adapterd_\w+:(?:rate|ratio|ratio_rate|mean|p50_|p99_)(\d+m)?", rule.name)
    assert name, "level:metric:operations"
    assert {*re.findall(r"\[(\d+m)\]", rule.text), *re.findall(r":[a-z_]+(\d+m)\b", rule.text)} == {name[1]} - {None}


def test_alerts_use_only_series_that_are_recorded() -> None:
    used = {name for rule in rules() for name in rule.metrics if ":" in name}
    assert used <= {rule.name for rule in RECORDED}
