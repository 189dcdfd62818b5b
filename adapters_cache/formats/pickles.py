"""Read pickled tensor files without unpickling them here: a worker process converts each to safetensors."""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from torch import Tensor

from adapters_cache.formats.safe_file import MAX_HEADER_BYTES, read_bytes, read_safetensors
from server.errors import MalformedCheckpoint, Unavailable

TIMEOUT_S = 15.0  # for one file; the first one also pays for starting the worker
MAX_REPLY_BYTES = 4096
NEEDED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_", "TMPDIR", "OMP_", "MKL_", "OPENBLAS_", "VIRTUAL_ENV", "PYTHONHOME")


class PickleReader:
    """One worker process, started by the first file and replaced when it hangs or dies. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, max_bytes: int, timeout_s: float = TIMEOUT_S) -> dict[str, Tensor]:
        """Give the finite floating point tensors of a `.bin` file.

        Raises MalformedCheckpoint for anything but a plain dictionary of tensors, and when the worker takes too long.
        """
        data = read_bytes(path, max_bytes)
        with tempfile.TemporaryDirectory(prefix="adapterd-") as folder:
            source, target = Path(folder, path.name), Path(folder, path.name + ".safetensors")
            source.write_bytes(data)  # a copy: the file that was measured is the file that is converted
            del data
            with self._lock:
                reason = self._convert(source, target, max_bytes, timeout_s)
            if reason is not None:
                raise MalformedCheckpoint(f"{path.name} {reason}", file=path.name)
            tensors = read_safetensors(target, max_bytes + MAX_HEADER_BYTES + 8)
        return tensors

    def close(self) -> None:
        """End the worker; a file that is being converted is refused. The next file starts a new one."""
        if (worker := self._worker) is not None:
            worker.kill()  # before the lock: whoever holds it is waiting for this process
        with self._lock:
            self._stop()

    def _convert(self, source: Path, target: Path, max_bytes: int, timeout_s: float) -> str | None:
        request = {"source": str(source), "target": str(target), "max_bytes": max_bytes}
        line = json.dumps(request).encode() + b"\n"
        for _ in range(2):  # a worker that was idle may end just as the line is written
            try:
                error = self._exchange(self._start(), line, timeout_s).get("error")
                return None if error is None else str(error)
            except TimeoutError:
                self._stop()
                return f"took longer than {timeout_s:g} s to convert"
            except OSError:
                self._stop()
        return "made its reader process end"

    def _exchange(self, worker: subprocess.Popen[bytes], request: bytes, timeout_s: float) -> dict[str, object]:
        """Send one line, receive one. Raises TimeoutError, OSError when the worker is gone."""
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(request)
        worker.stdin.flush()
        deadline = time.monotonic() + timeout_s
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(worker.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(worker.stdout.fileno(), MAX_REPLY_BYTES)
                if not chunk or len(line) > MAX_REPLY_BYTES:
                    raise OSError("no reply")
                line += chunk
        reply: dict[str, object] = json.loads(line)
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        self._stop()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "adapters_cache.formats.pickle_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment() | {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""},
                start_new_session=True,  # Ctrl-C on the server's terminal is the server's to handle
            )
        except OSError as error:
            raise Unavailable(f"the process that reads .bin files cannot start: {error.strerror}") from error
        return self._worker

    def _stop(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.kill()
        for pipe in (worker.stdin, worker.stdout):
            if pipe is not None:
                pipe.close()
        worker.wait()


def _environment() -> dict[str, str]:
    """What a Python needs to start; whatever secrets this process was given stay here."""
    return {name: value for name, value in os.environ.items() if name.startswith(NEEDED)}


_shared = PickleReader()
atexit.register(_shared.close)


def read_pickle(path: Path, max_bytes: int, timeout_s: float = TIMEOUT_S) -> dict[str, Tensor]:
    """Read through the worker that the whole process shares. Raises as `PickleReader.read` does."""
    return _shared.read(path, max_bytes, timeout_s)
