"""The process that opens pickled checkpoints, so that the server never does.

One JSON object per line on stdin, {"source", "target", "max_bytes"}, one on stdout, {"error": null or a reason}.
Tensors go from the pickle at `source` to a safetensors file at `target`. Ends when stdin does, and after IDLE_S without
a file, to give its memory back.

What it does not need it gives up before the first file: the network, new privileges, many files, endless time.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import select
import sys
from typing import Any

import safetensors.torch
import torch

ROOM_BYTES = 2 << 30  # address space that loading and copying may add besides the file's own bytes
IDLE_S = 60.0
MAX_FILES = 64  # open at a time
MAX_CPU_S = 30  # of one file
PR_SET_NO_NEW_PRIVS, CLONE_NEWUSER, CLONE_NEWNET = 38, 0x10000000, 0x40000000
NOT_TENSORS = "is not a plain dictionary of tensors"


def convert(source: str, target: str, max_bytes: int) -> str | None:
    """Write the tensors of `source` to `target`; give the reason why not, or None."""
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return "wants to run code or is not a pickle of tensors, and was not loaded"
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, IndexError, AttributeError, TypeError):
        return "is truncated or not a checkpoint of torch"
    except MemoryError:
        return "needs too much memory"
    reason = _refusal(state, max_bytes)
    if reason is None:
        # clones: tensors that share storage cannot be written as safetensors
        copies = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
        safetensors.torch.save_file(copies, target)
    return reason


def _refusal(state: Any, max_bytes: int) -> str | None:
    if not isinstance(state, dict):
        return NOT_TENSORS
    for key, value in state.items():
        if not isinstance(key, str) or type(value) not in (torch.Tensor, torch.nn.Parameter):
            return NOT_TENSORS
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            return NOT_TENSORS
    # a stride of 0 makes a huge tensor out of few bytes
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if size > max_bytes:
        return f"unpacks to {size} bytes, the limit is {max_bytes}; raise max_adapter_bytes to serve it"
    return None


def _limit_memory(max_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + 3 * max_bytes + ROOM_BYTES
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def confine() -> list[str]:
    """Give up what converting does not need; the names of what this system did not take.

    Limits of resources always can be lowered. A network of its own, which leads nowhere, is one of a user namespace:
    some containers forbid those, and then the other processes of the container are as reachable as they were.
    """
    for limit, most in ((resource.RLIMIT_NOFILE, MAX_FILES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (least, least))
    if not sys.platform.startswith("linux"):
        return ["no_new_privs", "network"]
    libc = ctypes.CDLL(None, use_errno=True)
    left = []
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        left.append("no_new_privs")
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        left.append("network")
    return left


def _limit_work(max_bytes: int) -> None:
    """Of the next file: processor time from now, and the size of what may be written."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + MAX_CPU_S
    for limit, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, 2 * max_bytes + ROOM_BYTES)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
    confine()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that a library prints may look like a reply
    torch.set_num_threads(1)
    while select.select([sys.stdin], [], [], IDLE_S)[0] and (line := sys.stdin.readline()):
        request = json.loads(line)
        if os.path.exists("/proc/self/statm"):
            _limit_memory(request["max_bytes"])
        _limit_work(request["max_bytes"])
        try:
            reason = convert(request["source"], request["target"], request["max_bytes"])
        except MemoryError:
            reason = "needs too much memory"
        except Exception as error:  # the reply fails this one file; the next one gets its own
            reason = f"cannot be converted ({type(error).__name__})"
        print(json.dumps({"error": reason}), file=replies, flush=True)


if __name__ == "__main__":
    main()
