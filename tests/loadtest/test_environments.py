"""Environments of peers: made once, made again when their requirements change."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.peers.contenders import PEERS
from loadtest.peers.environments import REQUIREMENTS, STAMP, python_of
from loadtest.peers.process import PeerFailed


def test_an_environment_is_kept_until_its_requirements_change(tmp_path: Path) -> None:
    wanted, told = tmp_path / "lib.txt", list[str]()
    wanted.write_text("")
    python = python_of("lib", tmp_path / "made", told.append, tmp_path)
    made = python.stat().st_ctime_ns
    assert python_of("lib", tmp_path / "made", told.append, tmp_path) == python and python.stat().st_ctime_ns == made
    wanted.write_text(f"lib @ file://{tmp_path}/nowhere\n")
    with pytest.raises(PeerFailed, match="not installed: ERROR: .*nowhere"):
        python_of("lib", tmp_path / "made", told.append, tmp_path)
    assert any("nowhere" in line for line in told)
    assert not (tmp_path / "made" / "lib" / STAMP).exists()  # what failed is not taken for done


@pytest.mark.parametrize("name", sorted({peer.environment for peer in PEERS if peer.environment}))
def test_requirements_are_exact(name: str) -> None:
    lines = [line for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line for line in lines)
    ours = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert next(line for line in lines if line.startswith("torch==")) in ours
