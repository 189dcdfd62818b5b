"""What people do today: one model, one active adapter, a few kept; whoever comes next waits for the swap."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from loadtest import workload
from loadtest.bench import batch_of
from loadtest.fleet.stack import LENGTH
from loadtest.peers.process import PeerFailed, last_line
from server.core import Adapter, target_of
from server.metrics import Metrics
from server.model.base import Base
from server.model.runner import Runner
from server.model.slots import SlotBank

WORKER = Path(__file__).parents[1] / "peers" / "workers" / "adapterhub_hotswap.py"
KEPT = 25
LOADING_S = 300.0  # what the library may take besides the requests
SLOT = 1


class HotSwap:
    """The same base and the same modules as ours; requests one at a time, the last KEPT adapters in memory.

    An adapter that is not among them is read from its checkpoint; the active one is copied in whenever it changes.
    """

    def __init__(self, base: Base, folder: Path) -> None:
        self._base, self._folder = base, folder
        self._bank = SlotBank(base.device, base.dtype)
        self._runner = Runner(base, self._bank, Metrics())
        self._kept: OrderedDict[str, Adapter] = OrderedDict()
        self._active = ""
        self._text = workload.encoding(LENGTH, base.info.vocab_size, random.Random(0))

    def run(self, names: Sequence[str], requests: NDArray[np.int64], limit_s: float) -> float:
        """Requests a second, of those that the time allows."""
        started, done = time.perf_counter(), 0
        for number in requests.tolist():
            self._answer(names[number])
            done += 1
            if time.perf_counter() - started > limit_s:
                break
        return done / (time.perf_counter() - started)

    def _answer(self, name: str) -> None:
        adapter = self._kept.pop(name, None) or self._read(name)
        self._kept[name] = adapter
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        if name != self._active:
            self._bank.write(SLOT, adapter)
            self._active = name
        self._runner.execute(batch_of([(self._text, target_of(adapter))], {adapter.digest: SLOT}))

    def run_library(
        self, names: Sequence[str], requests: NDArray[np.int64], limit_s: float, base: Path, python: Path
    ) -> float:
        """The same with AdapterHub's library, which `python` has. Raises PeerFailed."""
        with tempfile.TemporaryDirectory() as name:
            job, output = Path(name) / "job.json", Path(name) / "output.json"
            facts = {
                "base": str(base),
                "folder": str(self._folder),
                "names": [names[number] for number in requests.tolist()],
                "kept": KEPT,
                "limit_s": limit_s,
                "input_ids": self._text.input_ids[:LENGTH],
                "output": str(output),
            }
            job.write_text(json.dumps(facts), encoding="utf-8")
            command = [str(python), "-E", "-s", str(WORKER), str(job)]
            try:
                subprocess.run(command, capture_output=True, text=True, timeout=limit_s + LOADING_S, check=True)
            except subprocess.CalledProcessError as error:
                raise PeerFailed(last_line(error.stderr)) from None
            except subprocess.TimeoutExpired:
                raise PeerFailed(f"no answer within {limit_s + LOADING_S:g} s") from None
            return float(json.loads(output.read_text())["per_s"])

    def _read(self, name: str) -> Adapter:
        return build_adapter(read_checkpoint(self._folder / name), self._base.info, self._base.dtype, self._base)
