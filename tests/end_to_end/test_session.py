"""The session of docs/training.md, every command in a process of its own: train, push, pull on a second machine's
server, answer, train again and publish under load."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from make_bases import save_lively_base
from make_tokenizer import save_tokenizer

from adapterd import Client, Error
from adapterd.v1 import inference_pb2 as v1
from loadtest.children import serving

NUM_CALLERS = 4
TEXT = "a c d e"


def write_rows(path: Path, words: dict[str, str]) -> Path:
    """Texts that open with one of `words`, labelled by it."""
    rng = random.Random(0)
    rows = [(word, [rng.choice("cde") for _ in range(4)]) for word in rng.choices(list(words), k=96)]
    lines = [f"{word} {' '.join(rest)},{words[word]}" for word, rest in rows]
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return path


def adapterd(*arguments: object) -> str:
    command = [sys.executable, "-m", "server", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_train_push_pull_serve_and_publish_under_load(tmp_path: Path) -> None:
    base = save_tokenizer(save_lively_base(tmp_path / "base"))
    rows = write_rows(tmp_path / "rows.csv", {"a": "first", "b": "second"})
    swapped = write_rows(tmp_path / "swapped.csv", {"a": "second", "b": "first"})
    options = ["--base", base, "--config", "seq_bn[reduction_factor=4]", "--epochs", 12, "--learning-rate", 1e-2]
    train = ["train", "--task", "text-classification", "--batch-size", 16, "--patience", 12, *options]

    adapterd(*train, "--server", "none", "--train", rows, "--test", rows, "--output", tmp_path / "a" / "reviews")
    adapterd("push", tmp_path / "a" / "reviews", tmp_path / "registry", "--tag", "v1")
    there = tmp_path / "b"
    there.mkdir()
    serve = ["--base", str(base), "--device", "cpu", "--adapters", str(there), "--set", f"api.publish_folder={there}"]
    with (
        serving(*serve, "--batch-tokens", "1024", "--set", "cache.watch_s=0.2") as (address, _),
        Client(address) as client,
    ):
        adapterd("pull", "reviews@v1", "--from", tmp_path / "registry", "--output", there)
        wanted = {}
        first = first_answer(client)
        assert first.results[0].classification.labels[0].label == "first"
        wanted[first.digest] = logits(first)

        with Callers(address) as callers:
            callers.wait_for(20)
            output = tmp_path / "c" / "reviews"
            told = adapterd(*train, "--train", swapped, "--output", output, "--server", "none", "--publish", address)
            callers.wait_for(20)
        second = client.predict("reviews", TEXT, return_logits=True)
        wanted[second.digest] = logits(second)
        assert second.results[0].classification.labels[0].label == "second" and second.digest[:12] in told

    assert not callers.errors
    assert {answer.digest for answer in callers.answers} == set(wanted) and len(wanted) == 2
    assert max(abs(a - b) for a, b in zip(*wanted.values(), strict=True)) > 0.1  # they cannot be taken for each other
    for answer in callers.answers:
        assert logits(answer) == pytest.approx(wanted[answer.digest], abs=1e-4)


def first_answer(client: Client) -> v1.PredictResponse:
    """The server looks into its folders now and then."""
    while True:
        try:
            return client.predict("reviews", TEXT, return_logits=True)
        except Error:
            time.sleep(0.05)


def logits(answer: v1.PredictResponse) -> list[float]:
    return list(answer.results[0].logits.values)


class Callers:
    """Threads that ask the same again and again, and keep every answer and every error."""

    def __init__(self, address: str) -> None:
        self.answers: list[v1.PredictResponse] = []
        self.errors: list[Exception] = []
        self._address = address
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(NUM_CALLERS)]

    def _call(self) -> None:
        with Client(self._address, max_retries=0) as client:
            while not self._is_over.is_set():
                try:
                    self.answers.append(client.predict("reviews", TEXT, return_logits=True))
                except Exception as error:
                    self.errors.append(error)
                time.sleep(0.005)

    def wait_for(self, more: int) -> None:
        wanted = len(self.answers) + more
        while len(self.answers) < wanted and not self.errors:
            time.sleep(0.01)

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
