"""Folders that change as a whole."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from server import folders
from server.folders import folder_beside, put_in_place


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_folder_is_replaced_and_what_was_there_is_given_back(
    has_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_exchange:
        monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    into = tmp_path / "adapter"
    for number, was_there in enumerate((False, True, True)):
        with folder_beside(into) as aside:
            (aside / "file").write_text(str(number))
            assert put_in_place(aside, into) is was_there
            assert not was_there or (aside / "file").read_text() == str(number - 1)
        assert (into / "file").read_text() == str(number)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_nobody_finds_nothing_while_it_is_replaced(tmp_path: Path) -> None:
    into = tmp_path / "adapter"
    into.mkdir()
    (into / "file").write_text("0")
    with folder_beside(into) as aside:
        if not folders._exchanged(aside, into):
            pytest.skip("this file system cannot exchange names")
        folders._exchanged(aside, into)
    missing, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                (into / "file").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(300):
        with folder_beside(into) as aside:
            (aside / "file").write_text(str(number))
            put_in_place(aside, into)
    stop.set()
    reader.join()
    assert not missing


def test_a_folder_that_is_not_put_in_place_is_gone(tmp_path: Path) -> None:
    with pytest.raises(KeyError), folder_beside(tmp_path / "adapter") as aside:
        (aside / "file").write_text("half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []
