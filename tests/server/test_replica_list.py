"""Where the list of replicas comes from: files and name services."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.config import ApiConfig
from server.errors import InvalidInput
from server.replicas import Replicas


async def listed(place: str, advertise: str = "") -> Replicas:
    replicas = Replicas(ApiConfig(replicas=place, advertise=advertise, reload_s=0.02))
    await replicas.start(50051)
    return replicas


async def test_a_file_lists_an_address_a_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("b:2 # spare\n\n# none\na:1\nb:2\n[::1]:3\n")
    replicas = await listed(f"file:{tmp_path}/list")
    assert replicas.addresses == ("[::1]:3", "a:1", "b:2")
    await replicas.stop()


async def test_a_file_that_changes_is_followed_and_one_that_is_bad_is_not(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("a:1")
    replicas = await listed(f"file:{path}")
    for content, expected in (
        ("a:1\nb:2", ("a:1", "b:2")),
        ("a:1\nhost", ("a:1", "b:2")),
        ("a:1\n::1", ("a:1", "b:2")),
        ("c:3", ("c:3",)),
    ):
        path.write_text(content)
        await asyncio.sleep(0.1)
        assert replicas.addresses == expected
    path.unlink()
    await asyncio.sleep(0.1)
    assert replicas.addresses == ("c:3",)
    await replicas.stop()


async def test_a_name_is_resolved() -> None:
    replicas = await listed("dns:localhost:50051")
    assert "127.0.0.1:50051" in replicas.addresses
    await replicas.stop()


@pytest.mark.parametrize(
    ("advertise", "own"),
    [("", ""), ("10.0.0.7", "10.0.0.7:50051"), ("pod:7", "pod:7"), ("[fd00::1]", "[fd00::1]:50051")],
)
async def test_its_own_address_is_what_it_was_told(advertise: str, own: str) -> None:
    replicas = await listed("", advertise)
    assert replicas.own == own and replicas.addresses == ()
    await replicas.stop()


@pytest.mark.parametrize("place", ["a:1", "dns:name", "dns:", "http://a:1", "dns:a:99999"])
def test_a_place_that_cannot_be_is_refused(place: str) -> None:
    with pytest.raises(InvalidInput, match="replicas|HOST"):
        ApiConfig(replicas=place)


@pytest.mark.parametrize("advertise", ["::1", "a:b", ":1", "a:99999"])
def test_an_address_that_cannot_be_is_refused(advertise: str) -> None:
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        ApiConfig(advertise=advertise)
