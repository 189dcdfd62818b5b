"""Our own recorded cases through the serving engine: what AdapterHub's library and PEFT answered, is answered here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.config import ModelConfig
from server.verify import check

RECORDED = Path(__file__).parents[1] / "recorded"
# Case -> why it may be refused. A case that is here and is answered after all fails the test, so that it leaves.
UNSUPPORTED: dict[str, str] = {}


@pytest.mark.parametrize("options", [{}, {"mixed": True, "seed": 1}, {"mixed": True, "seed": 2}], ids=str)
def test_recorded_cases_are_answered_as_recorded(options: dict[str, Any]) -> None:
    outcomes = check(RECORDED, ModelConfig(device="cpu", num_threads=1), **options)
    failed = {o.case["id"]: o.reason or f"{o.error:.3g} x tolerance" for o in outcomes if o.is_failed}
    refused = {o.case["id"]: o.reason for o in outcomes if o.is_unsupported}
    assert failed == {}
    assert refused.keys() == UNSUPPORTED.keys(), refused
    assert len(outcomes) > 200
