"""The file that tells Prometheus where servers are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.ray import targets


def test_the_file_is_replaced_whole_and_others_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "targets.json"
    for addresses in (["b:9", "a:9"], ["b:9"]):
        targets.write(path, addresses)
        assert json.loads(path.read_text()) == [{"targets": sorted(addresses)}]
    assert list(tmp_path.iterdir()) == [path] and path.stat().st_mode & 0o044


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        targets.write(tmp_path / "none" / "targets.json", ["a:9"])
