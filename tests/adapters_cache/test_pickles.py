from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapters_cache.formats.pickles import PickleReader
from server.errors import MalformedCheckpoint

MANY = 1 << 24


@pytest.fixture(scope="module")
def reader() -> Iterator[PickleReader]:
    reader = PickleReader()
    yield reader
    reader.close()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.path}",))


def test_tensors_come_back_as_they_were_shared_storage_included(tmp_path: Path, reader: PickleReader) -> None:
    shared = torch.randn(3, 4)
    state = {"a": shared, "b": shared, "t": shared.T, "half": torch.ones(2, dtype=torch.float16)}
    torch.save(state, tmp_path / "x.bin")
    found = reader.read(tmp_path / "x.bin", MANY)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)


def test_pickle_that_runs_code_is_malformed_and_the_code_does_not_run(tmp_path: Path, reader: PickleReader) -> None:
    marker = tmp_path / "marker"
    for number, payload in enumerate([_Touch(marker), {"a": _Touch(marker)}]):
        path = tmp_path / f"{number}.bin"
        torch.save(payload, path)
        with pytest.raises(MalformedCheckpoint, match="run code"):
            reader.read(path, MANY)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "payload", [[torch.ones(1)], {"a": [1]}, {1: torch.ones(1)}, {"a": torch.ones(2).to_sparse()}, torch.ones(1)]
)
def test_anything_but_a_dictionary_of_tensors_is_malformed(
    tmp_path: Path, reader: PickleReader, payload: object
) -> None:
    torch.save(payload, tmp_path / "x.bin")
    with pytest.raises(MalformedCheckpoint):
        reader.read(tmp_path / "x.bin", MANY)


def test_damaged_files_are_malformed(tmp_path: Path, reader: PickleReader) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "x.bin")
    whole = (tmp_path / "x.bin").read_bytes()
    for data in (b"", b"\x80", whole[:50], whole[: len(whole) // 2], b"PK" + bytes(100)):
        (tmp_path / "x.bin").write_bytes(data)
        with pytest.raises(MalformedCheckpoint):
            reader.read(tmp_path / "x.bin", MANY)


def test_few_bytes_that_stand_for_a_huge_tensor_are_refused(tmp_path: Path, reader: PickleReader) -> None:
    torch.save({"a": torch.ones(1).expand(1 << 30)}, tmp_path / "x.bin")
    with pytest.raises(MalformedCheckpoint, match="unpacks to"):
        reader.read(tmp_path / "x.bin", MANY)


def test_integers_and_nan_are_refused(tmp_path: Path, reader: PickleReader) -> None:
    for tensor in (torch.ones(2, dtype=torch.int64), torch.tensor([float("nan")])):
        torch.save({"bad": tensor}, tmp_path / "x.bin")
        with pytest.raises(MalformedCheckpoint, match="bad"):
            reader.read(tmp_path / "x.bin", MANY)


def test_worker_that_died_is_replaced(tmp_path: Path, reader: PickleReader) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    reader.read(tmp_path / "x.bin", MANY)
    assert reader._worker is not None
    os.kill(reader._worker.pid, signal.SIGKILL)
    assert reader.read(tmp_path / "x.bin", MANY).keys() == {"a"}


def test_worker_that_hangs_is_killed_and_the_file_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    reader = PickleReader()
    try:
        reader.read(tmp_path / "x.bin", MANY)
        worker = reader._worker
        assert worker is not None
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(MalformedCheckpoint, match="took longer than 0.05 s"):
            reader.read(tmp_path / "x.bin", MANY, timeout_s=0.05)
        assert worker.returncode == -signal.SIGKILL
        assert reader.read(tmp_path / "x.bin", MANY).keys() == {"a"}
    finally:
        reader.close()


def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, reader: PickleReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(private))
    torch.save({"a": torch.ones(1)}, tmp_path / "x.bin")
    reader.read(tmp_path / "x.bin", MANY)
    assert not list(private.iterdir())


def test_the_process_that_opens_pickles_has_no_network_no_secrets_and_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-the-server")
    reader = PickleReader()
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    try:
        assert reader.read(tmp_path / "a.bin", 1 << 20)["a"].tolist() == [1, 1]
        worker = reader._worker
        assert worker is not None
        process = Path(f"/proc/{worker.pid}")
        assert b"secret-of-the-server" not in (process / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split()[0] for line in (process / "limits").read_text().splitlines()[1:]}
        assert int(limits["Max open files"]) <= 64 and limits["Max core file size"] == "0"
        assert int(limits["Max cpu time"]) < 100 and limits["Max file size"].isdecimal()
        assert "NoNewPrivs:\t1" in (process / "status").read_text()
        if os.readlink(process / "ns/net") == os.readlink("/proc/self/ns/net"):  # where user namespaces are forbidden
            assert subprocess.run(["unshare", "-Un", "true"], capture_output=True).returncode != 0
        else:
            assert (
                len((process / "net/dev").read_text().splitlines()) == 3
            )  # two of headers, and a loopback that is down
    finally:
        reader.close()
