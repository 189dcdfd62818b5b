from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.audit import MAX_DENIED_PER_S, Audit
from server.core import Tenant
from server.errors import InvalidInput, Overloaded

ACME = Tenant("acme")


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_was_done_is_written_with_its_outcome(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "log"))
    with audit.action(ACME, "Load", "x\n" * 1000, percent=3):
        pass
    with pytest.raises(Overloaded), audit.action(ACME, "Pin", "y"):
        raise Overloaded("no room")
    with pytest.raises(ZeroDivisionError), audit.action(ACME, "Pin", "y"):
        raise ZeroDivisionError
    first, second, third = lines(tmp_path / "log")
    assert first.items() >= {"tenant": "acme", "action": "Load", "outcome": "OK", "percent": 3}.items()
    assert len(str(first["adapter"])) <= 256
    assert (second["outcome"], third["outcome"]) == ("OVERLOADED", "INTERNAL")
    audit.close()


def test_a_file_that_was_rotated_away_is_begun_anew(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "log"))
    audit.reloaded("tenants", "OK")
    (tmp_path / "log").rename(tmp_path / "log.1")
    audit.reloaded("tenants", "OK")
    assert len(lines(tmp_path / "log")) == len(lines(tmp_path / "log.1")) == 1
    audit.close()


def test_a_flood_of_unknown_callers_is_counted_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("server.audit.time.monotonic", lambda: now)
    audit = Audit(str(tmp_path / "log"))
    for _ in range(MAX_DENIED_PER_S + 30):
        audit.denied("ipv4:10.0.0.1:5", "unknown token")
    now = 101.5
    audit.denied("ipv4:10.0.0.1:5", "unknown token")
    written = lines(tmp_path / "log")
    assert len(written) == MAX_DENIED_PER_S + 2 and written[-2]["more"] == 30
    audit.close()


def test_a_file_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="audit_log log"):
        Audit(str(tmp_path / "missing" / "log"))
