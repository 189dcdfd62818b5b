"""What the pages name exists, and what exists is in them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import fields

import pytest
from doc_pages import ROOT, blocks_of, pages, text_of

from adapterd import Client
from server.cli.demo import Row, read_cases
from server.cli.demo_table import is_right
from server.cli.settings import SECTIONS
from server.core import Tenant
from server.metrics import Metrics
from server.oip import answers, requests

OPERATIONS = text_of("docs/operations.md")
README = text_of("README.md")
SETTINGS = {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in fields(section)}
SETTING = re.compile(rf"\b(?:{'|'.join(SECTIONS)})\.(?!py\b)[a-z]\w*\b(?![(/.])")
OF_PYTHON = {"model.active_head"}


def test_every_setting_is_explained_where_it_is_declared() -> None:
    rows = re.findall(r"^\| `\w+` \| .* \| `.*` \| (.*) \|$", text_of("docs/reference/configuration.md"), re.MULTILINE)
    assert len(rows) == len(SETTINGS) and all(rows)


@pytest.mark.parametrize("page", pages(("README.md", "docs/*.md", "docs/how-to/*.md")))
def test_settings_that_a_page_names_exist(page: str) -> None:
    prose = re.sub(r"```python\n.*?```", "", text_of(page), flags=re.DOTALL)
    named = {found for quoted in re.findall(r"`([^`\n]+)`", prose) for found in SETTING.findall(quoted)}
    assert named - SETTINGS - OF_PYTHON == set()


def test_tenants_shown_use_every_key() -> None:
    [shown] = [
        block for block in blocks_of("docs/operations.md") if block.language == "toml" and "[acme]" in block.text
    ]
    keys = {key for table in tomllib.loads(shown.text).values() for key in table}
    assert keys == {field.name for field in fields(Tenant)} - {"name", "index"}


def column(page: str, section: str, number: int) -> set[str]:
    """Names in a column of the table of a section; columns count from 0."""
    _, _, rest = text_of(page).partition(f"### {section}\n")
    rows = [line for line in rest.partition("\n#")[0].splitlines() if line.startswith("| ")][2:]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1 + number])}


def test_the_protocols_tensors_and_parameters_are_all_shown() -> None:
    page = "docs/protocols.md"
    assert column(page, "Inputs", 0) == set(requests.INPUTS)
    assert column(page, "Outputs", 1) == {name for kind in answers.OUTPUTS for name in answers.outputs_of(kind)}
    assert column(page, "Parameters", 0) == {*requests.SETTERS, *requests.READ_ELSEWHERE}


def test_metrics_shown_are_all_metrics() -> None:
    shown = set(re.findall(r"`(adapterd_\w+)", OPERATIONS))
    suffix = {"counter": "_total", "info": "_info"}
    exported = {metric.name + suffix.get(metric.type, "") for metric in Metrics().registry.collect()}
    assert shown == exported


def test_tests_that_hold_the_tables_of_adapters_exist() -> None:
    text = text_of("docs/adapters.md")
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    named = set(re.findall(r"\btest_\w+(?:\.py)?", text))
    assert len(named) > 30
    missing = [n for n in named if n not in files and not any(f"def {n}(" in source for source in files.values())]
    assert missing == []


def test_folders_shown_in_the_readme_exist() -> None:
    [tree] = re.findall(r"## Layout\n\n```\n(.*?)```", README, re.DOTALL)
    shown = {line.split("/")[0] for line in tree.splitlines()}
    assert shown <= folders(), shown - folders()


def folders() -> set[str]:
    """Those of the repository; of a checkout only what git knows, because an empty folder is nobody else's."""
    if not (ROOT / ".git").exists():
        return {path.name for path in ROOT.iterdir() if path.is_dir()}
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {line.split("/")[0] for line in known.splitlines() if "/" in line}


def test_demo_texts_are_answered_as_expected(demo_ports: dict[str, int]) -> None:
    cases = list(read_cases(ROOT / "examples" / "demo.jsonl"))
    assert sum(bool(case.expect) for case in cases) >= 8
    with Client(f"127.0.0.1:{demo_ports['50051']}") as client:
        for case in cases:
            row = Row(case, client.predict(case.adapter, case.text, text_pair=case.text_pair), 0.0)
            assert is_right(row), row


def test_tests_that_hold_the_promises_of_security_exist() -> None:
    text = text_of("docs/security.md")
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    named = set(re.findall(r"`(test_\w+)`", text))
    assert len(named) > 30
    assert [name for name in named if not any(f"def {name}(" in source for source in sources)] == []
    assert all((ROOT / path).exists() for path in re.findall(r"`(tests/[\w/.]+)`", text))
