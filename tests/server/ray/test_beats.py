"""A replica's words, whatever its server does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import pytest

from server.ray.beats import Beats
from server.ray.members import BEAT_S, CALL_S, GONE_S, SETTLE_S, Members

LIMIT_S = 10.0


class Direct:
    """Members without an actor around them, long started."""

    def __init__(self) -> None:
        now = [0.0]
        self._members = Members(lambda: now[0])
        now[0] = SETTLE_S
        self.said: list[str] = []
        self.spoke = threading.Condition()

    def beat(self, address: str, known: Collection[str], http: str) -> Mapping[str, str]:
        with self.spoke:
            self.said.append("beat")
            self.spoke.notify_all()
            return self._members.beat(address, known, http) or {}

    def leave(self, address: str) -> None:
        with self.spoke:
            self.said.append("leave")
            self.spoke.notify_all()
            self._members.leave(address)

    def wait(self, is_so: Callable[[list[str]], bool]) -> None:
        with self.spoke:
            assert self.spoke.wait_for(lambda: is_so(self.said), LIMIT_S), self.said


@contextmanager
def telling(
    members: Direct, takes_calls: Callable[[], bool], tell: Callable[[Mapping[str, str]], None]
) -> Iterator[None]:
    beats = Beats(members, "a:1", "a:9", takes_calls, tell, every_s=0.01)
    try:
        yield
    finally:
        beats.stop()


def test_who_lives_says_so_and_tells_its_server_once_what_is_new() -> None:
    members, told = Direct(), []
    with telling(members, lambda: True, told.append):
        members.wait(lambda said: said.count("beat") > 3)
    assert told == [{"a:1": "a:9"}] and members.said[-1] == "leave"


def test_who_takes_no_calls_leaves_once_and_comes_back() -> None:
    members, takes_calls = Direct(), threading.Event()
    with telling(members, takes_calls.is_set, lambda addresses: None):
        members.wait(lambda said: said == ["leave"])
        takes_calls.set()
        members.wait(lambda said: said[:2] == ["leave", "beat"])


def test_what_could_not_be_written_is_written_with_the_next_word(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[Mapping[str, str]] = []

    def tell(replicas: Mapping[str, str]) -> None:
        tries.append(replicas)
        if len(tries) == 1:
            raise OSError("no space left")

    members = Direct()
    with telling(members, lambda: True, tell):
        members.wait(lambda said: said.count("beat") > 3)
    assert tries == [{"a:1": "a:9"}] * 2 and "no space left" in caplog.text


def test_two_words_that_are_lost_take_nobody_off_the_list() -> None:
    assert GONE_S > 2 * (BEAT_S + CALL_S) + BEAT_S
