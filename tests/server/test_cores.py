"""Limits of CPU time, as files of the kernel tell them."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.cores import quota, usable_cores


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, math.inf),
        ({"": "max 100000"}, math.inf),
        ({"": "150000 100000"}, 1.5),
        ({"pods": "400000 100000", "pods/own": "max 100000"}, 4.0),
        ({"pods": "400000 100000", "pods/own": "50000 100000"}, 0.5),
        ({"others": "50000 100000"}, math.inf),
    ],
)
def test_the_least_limit_of_the_group_and_those_around_it_counts(
    limits: dict[str, str], expected: float, tmp_path: Path
) -> None:
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("1:cpu:/elsewhere\n0::/pods/own\n")
    for group, text in limits.items():
        (groups / group).mkdir(parents=True, exist_ok=True)
        (groups / group / "cpu.max").write_text(text + "\n")
    assert quota(own, groups) == expected


def test_without_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert quota(tmp_path / "missing", tmp_path) == math.inf
    (tmp_path / "cgroup").write_text("1:cpu:/\n")  # version 1
    assert quota(tmp_path / "cgroup", tmp_path) == math.inf


def test_a_process_that_may_run_on_one_core_has_one() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    script = """
import os
from server.cores import usable_cores
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(usable_cores())
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "1\n"
