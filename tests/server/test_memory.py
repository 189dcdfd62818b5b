"""Activations reuse memory instead of asking the system for it again."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import pytest
import torch

from server.memory import TURN_S, compute_with, settled

# Page faults of one more block of 40 MB, after many were freed: the first ones may not fit exactly.
SCRIPT = """
import resource, sys
import torch
from server.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit("nothing to set")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(40)][-1])
"""


def _faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=False)
    if "nothing to set" in done.stderr:
        pytest.skip("not glibc")
    return int(done.stdout)


def test_freed_blocks_are_used_again() -> None:
    assert _faults("kept") * 100 < _faults("given back")


SLOTS = """
from pathlib import Path
import torch
from server.memory import keep_freed_memory, pages
keep_freed_memory()
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
source = torch.ones(1_000_003)
pages(1, torch.float32).copy_(source[:1])
before = resident()
slots = [pages(1_000_003, torch.float32).copy_(source) for _ in range(40)]
grown = resident() - before
stays = torch.ones(10)
slots = slots[:1]
print(grown, resident() - before)
"""


def test_slots_take_their_own_bytes_and_give_them_back() -> None:
    done = subprocess.run([sys.executable, "-c", SLOTS], capture_output=True, text=True, check=True)
    grown, left = (int(text) / 4_000_012 for text in done.stdout.split())
    assert 39.5 < grown < 41
    assert left < 2


def test_a_thread_computes_with_its_own_number_whatever_others_set_since() -> None:
    own, others = torch.get_num_threads(), threading.Event()
    seen: list[int] = []

    def computes() -> None:
        compute_with(own)
        others.wait(10)
        seen.append(torch.get_num_threads())

    first = threading.Thread(target=computes)
    first.start()
    second = threading.Thread(target=compute_with, args=(1,))
    second.start()
    second.join()
    others.set()
    first.join()
    compute_with(own)
    assert seen == [own]


def test_what_was_alive_is_not_looked_at_again_and_threads_take_turns_more_often() -> None:
    turn_s = sys.getswitchinterval()
    with settled():
        assert gc.get_freeze_count() > 0 and sys.getswitchinterval() == pytest.approx(TURN_S)
    assert gc.get_freeze_count() == 0 and sys.getswitchinterval() == turn_s
