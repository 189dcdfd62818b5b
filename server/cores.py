"""The cores that this process may use, which are fewer in a container than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

OWN_GROUP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """At least 1: those of its affinity, or what a limit of CPU time in its cgroup (version 2) comes to, rounded up."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affine, quota(OWN_GROUP, GROUPS))))


def quota(own_group: Path, groups: Path) -> float:
    """Seconds of CPU a second, the least of the group that a process is in and of those around it; inf without limits.

    own_group   the process's file of /proc that names its group
    groups      where the groups are mounted
    """
    try:
        lines = own_group.read_text().splitlines()
    except OSError:
        return math.inf
    own = next((PurePosixPath(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")), None)
    return math.inf if own is None else min(_quota_of(groups / group) for group in (own, *own.parents))


def _quota_of(group: Path) -> float:
    """The root has no file, nor has a group whose CPU nobody controls."""
    try:
        limit, period = (group / "cpu.max").read_text().split()
    except OSError:
        return math.inf
    return math.inf if limit == "max" else int(limit) / int(period)
