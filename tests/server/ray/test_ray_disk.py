"""A folder of the disk tier for each replica of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.errors import InvalidInput
from server.ray.disk import claimed


def test_each_has_its_own_and_the_next_takes_over_one_that_is_free(tmp_path: Path) -> None:
    parent = tmp_path / "disk"
    first, held = claimed(parent)
    second, other = claimed(parent)
    assert (first, second) == (parent / "replica-0", parent / "replica-1")
    os.close(held)
    again, held = claimed(parent)
    assert again == first
    os.close(held)
    os.close(other)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        claimed(tmp_path / "file")
