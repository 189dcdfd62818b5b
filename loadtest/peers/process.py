"""One worker: a process that answers one command after the other."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # where our packages lie
MAX_ERROR_CHARS = 300
GRACE_S = 10.0  # for a worker that was asked to end


class PeerFailed(Exception):
    """A contender could not be installed, loaded or run; the message is the row's."""


class Worker:
    """A script in its own interpreter. A context manager; one caller at a time.

    is_ours  whether the script may import our packages; others see nothing of this environment
    """

    def __init__(self, python: Path, script: Path, log: Path, threads: int, *, is_ours: bool) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment["HF_HUB_OFFLINE"] = "1"  # everything lies in folders; an attempt to download is a mistake
        if is_ours:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), *([] if is_ours else ["-E", "-s"]), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                encoding="utf-8",
            )
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def ask(self, command: str, timeout_s: float, **arguments: Any) -> dict[str, Any]:
        """The reply to a command. Raises PeerFailed if the worker reports an error, dies, or takes too long."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout_s)
        except OSError:
            raise PeerFailed(self._last_words()) from None
        except queue.Empty:
            self._kill()
            raise PeerFailed(f"no reply to '{command}' within {timeout_s:g} s") from None
        if not line:
            raise PeerFailed(self._last_words())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise PeerFailed(str(reply["error"])[:MAX_ERROR_CHARS])
        return reply

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put("")

    def _last_words(self) -> str:
        """Why there is no reply any more."""
        self._replies.put("")  # for the next one who asks
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return "the worker closed its output"
        words = last_line(self._log.read_text(errors="replace"))
        return f"ended with exit status {code}" + (f": {words}" if words else "")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not yet sent has nobody to read it
                pipe.close()  # type: ignore[union-attr]


def last_line(text: str) -> str:
    """The last line with something in it, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MAX_ERROR_CHARS] if lines else ""
