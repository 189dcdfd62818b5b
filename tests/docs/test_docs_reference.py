"""docs/reference is what `make reference` writes."""

from __future__ import annotations

import sys

import pytest
from doc_pages import ROOT

sys.path.append(str(ROOT / "docs" / "generate"))

from reference import PAGES, generated


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_fresh(name: str) -> None:
    path, text = ROOT / "docs" / "reference" / name, PAGES[name]()
    assert path.read_text(encoding="utf-8") == text.rstrip() + "\n", "run make reference, and commit what it writes"


def test_the_reference_names_what_there_is() -> None:
    texts = {path.name: text for path, text in generated()}
    assert "| `adapter` | 1 | string |" in texts["grpc.md"] and "inference.GRPCInferenceService" in texts["grpc.md"]
    assert "`/v2/models/{name}/infer`" in texts["http.md"] and "`RESOURCE_EXHAUSTED` | 429" in texts["http.md"]
    assert "| `max_in_flight` | integer | `1024` |" in texts["configuration.md"]
    assert "## predict" in texts["cli.md"] and "`--top-k INTEGER`" in texts["cli.md"]
