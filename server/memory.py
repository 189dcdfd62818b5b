"""What a process does with the machine: memory that comes and goes, adapters in pages of their own, threads."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# mallopt's own numbers, and what they are set to.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
KEPT_BYTES = 512 << 20  # of freed memory; what lies beyond goes back to the system
TURN_S = 5e-4  # of a thread that others wait for
STEP_BYTES = 64 << 20  # asked of the system at a time


def keep_freed_memory() -> bool:
    """Let glibc use freed blocks again instead of giving each back to the system; whether that could be set.

    An activation is tens of megabytes and lives for microseconds. Fresh from the system, each of its pages costs a page
    fault: a tenth of a batch's time. What lives long must not lie between them, see `pages`: memory goes back from its
    end only. For the whole process, all threads; nothing to set with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: KEPT_BYTES, _M_TOP_PAD: STEP_BYTES, _M_ARENA_MAX: 1}
    return all([mallopt(name, value) == 1 for name, value in wanted.items()])


class _MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "keepcost")
    ]


def heap_bytes() -> tuple[int, int]:
    """Of the C library's heap: in use, and free but kept. Zeros with other libraries than glibc."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return 0, 0
    mallinfo2.restype = _MallInfo
    info = mallinfo2()
    return int(info.used), int(info.free)


@contextmanager
def settled() -> Iterator[None]:
    """Have the interpreter set up for serving, once everything has started.

    What is alive now is permanent: the garbage collector does not look at it again, for a full collection over a loaded
    torch and thousands of known adapters stops every thread for a third of a second. And threads take turns more often:
    one that comes back from the system, or from torch, waits for a busy event loop until its turn is over, which made
    cold loads take seconds.
    """
    before = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.unfreeze()  # what ends with the process is told so


def compute_with(num_threads: int) -> None:
    """Have the calling thread, and no other, compute with so many threads on a CPU.

    A thread takes over at its first computation what was set last, in whatever thread: that comes first here.
    """
    torch.get_num_threads()
    torch.set_num_threads(num_threads)


def pages(num_elements: int, dtype: torch.dtype) -> Tensor:
    """[num_elements] of zeros in pages of their own, which go back to the system with the tensor.

    Kept memory would not do for what lives long: blocks between activations leave holes that nothing fits.
    """
    size_bytes = num_elements * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, max(size_bytes, 1)), dtype=dtype, count=num_elements)
