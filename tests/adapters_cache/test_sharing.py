"""Push, pull and search: folders and object stores through fsspec, and a hub that runs beside the test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pytest
from fakes import make_base
from hub_server import Hub, hub_server
from make_adapters import make_adapter

from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.sharing.artefact import MANIFEST, Artefact, describe
from adapters_cache.sharing.folder import FolderRegistry
from adapters_cache.sharing.hub import HubRegistry
from adapters_cache.sharing.origins import address_of, credentials
from server.errors import AdapterNotFound, InvalidInput, MalformedCheckpoint, Unavailable

# huggingface_hub's own use of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TWO = {"head_type": "classification", "num_labels": 2}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    make_adapter(
        tmp_path / "made" / "reviews", make_base(vocab_size=70), config="seq_bn[reduction_factor=4]", head=TWO, seed=1
    )
    return tmp_path / "made" / "reviews"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with hub_server() as server:
        yield server


def assert_same(pulled: Path, adapter: Path) -> None:
    for path in adapter.rglob("*"):
        if path.is_file() and path.name != MANIFEST:
            assert (pulled / path.relative_to(adapter)).read_bytes() == path.read_bytes()
    read_checkpoint(pulled)


@pytest.mark.parametrize("kind", ["folder", "object store"])
def test_what_is_pushed_is_pulled(kind: str, adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry") if kind == "folder" else f"memory://{tmp_path.name}")
    pushed = registry.push(adapter, describe(adapter, "reviews", task="text-classification", tags=("v1",)))
    for revision in ("main", "v1", pushed.revision, pushed.revision[:8]):
        found = registry.find("reviews", revision)
        assert (found.revision, found.method, found.task) == (pushed.revision, "bottleneck", "text-classification")
    assert_same(registry.pull(registry.find("reviews"), tmp_path / "pulled" / "reviews"), adapter)


def test_a_tag_stays_where_it_was_put_and_main_moves_on(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    first = registry.push(adapter, describe(adapter, "reviews", tags=("v1",)))
    make_adapter(adapter, make_base(vocab_size=70), config="seq_bn[reduction_factor=4]", head=TWO, seed=2)
    second = registry.push(adapter, describe(adapter, "reviews"))
    assert first.revision != second.revision
    assert registry.find("reviews", "v1").revision == first.revision
    assert registry.find("reviews").revision == second.revision


def test_a_registry_is_searched_by_task_language_and_base(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    (adapter / "metrics.json").write_text(json.dumps({"base": "minilm", "task": "text-classification"}))
    registry.push(adapter, describe(adapter, "reviews", language="en"))
    registry.push(adapter, describe(adapter, "kritiken", language="de"))
    assert [found.name for found in registry.search()] == ["kritiken", "reviews"]
    assert [found.name for found in registry.search(language="de")] == ["kritiken"]
    assert [found.name for found in registry.search("rev", base="minilm", task="text-classification")] == ["reviews"]
    assert list(registry.search(base="xlm-roberta-base")) == []


def test_the_demo_adapters_are_found_by_their_tasks(tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    for folder in (Path(__file__).parents[2] / "examples" / "adapters").iterdir():
        registry.push(folder, describe(folder, folder.name))
    found = {
        task: [one.name for one in registry.search(task=task)]
        for task in ("text-classification", "token-classification")
    }
    assert found["text-classification"] == ["snips-intent", "sst2-sentiment"]
    assert found["token-classification"] == ["snips-slots"]


def test_what_is_not_there_is_told_with_what_is(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    registry.push(adapter, describe(adapter, "reviews", tags=("v1",)))
    with pytest.raises(AdapterNotFound, match="tags there: main, v1"):
        registry.find("reviews", "v2")
    with pytest.raises(InvalidInput, match="cannot be the name"):
        registry.find("../reviews")


class Killed(BaseException): ...


@pytest.mark.parametrize("survived", range(6))
def test_a_push_that_is_killed_shows_nothing(
    survived: int, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    artefact = describe(adapter, "reviews")
    moves = 0
    put = registry._fs.mv

    def dies(*arguments: Any, **options: Any) -> None:
        nonlocal moves
        moves += 1
        if moves > survived:
            raise Killed
        put(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(registry._fs, "mv", dies)
        with pytest.raises(Killed):
            registry.push(adapter, artefact)
    assert list(registry.search()) == []
    with pytest.raises(AdapterNotFound):
        registry.find("reviews")
    registry.push(adapter, artefact)
    assert_same(registry.pull(registry.find("reviews"), tmp_path / "pulled"), adapter)


def test_a_pull_that_fails_leaves_what_was_there(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    first = registry.push(adapter, describe(adapter, "reviews"))
    into = registry.pull(first, tmp_path / "adapters" / "reviews")
    make_adapter(adapter, make_base(vocab_size=70), config="seq_bn[reduction_factor=4]", head=TWO, seed=2)
    second = registry.push(adapter, describe(adapter, "reviews"))
    weights = tmp_path / "registry" / "reviews" / second.revision / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(MalformedCheckpoint, match=r"adapter\.safetensors has sha256"):
        registry.pull(second, into)
    assert Artefact.loads((into / MANIFEST).read_text(), "").revision == first.revision
    assert [path.name for path in into.parent.iterdir()] == ["reviews"]


def test_a_manifest_cannot_write_outside_of_its_folder(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    pushed = registry.push(adapter, describe(adapter, "reviews"))
    evil = Artefact("reviews", pushed.revision, {"../../evil.json": ("", 1)})
    with pytest.raises(MalformedCheckpoint, match="not inside its folder"):
        registry.pull(evil, tmp_path / "adapters" / "reviews")


def test_what_is_no_adapter_is_not_shared(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(InvalidInput, match="holds no adapter"):
        describe(tmp_path, "notes")


def test_the_hub_gives_back_what_it_was_sent(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    registry = HubRegistry(hub.address, "hf_secret0123456789")
    registry.push(adapter, describe(adapter, "my-org/reviews", tags=("v1",)))
    for revision in ("main", "v1"):
        found = registry.find("my-org/reviews", revision)
        assert_same(registry.pull(found, tmp_path / f"pulled-{revision}"), adapter)
    assert [found.name for found in registry.search("reviews")] == ["my-org/reviews"]
    assert "Bearer hf_secret0123456789" in hub.tokens


def test_a_second_push_leaves_nothing_of_the_first_and_moves_its_tag(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    registry = HubRegistry(hub.address)
    registry.push(adapter, describe(adapter, "my-org/reviews", tags=("best",)))
    shutil.rmtree(adapter)
    make_adapter(adapter, make_base(vocab_size=70), config="lora[r=2]", seed=2)
    second = registry.push(adapter, describe(adapter, "my-org/reviews", tags=("best",)))
    found = registry.find("my-org/reviews", "best")
    assert (found.revision, found.method) == (second.revision, "lora")
    pulled = registry.pull(found, tmp_path / "pulled")
    assert_same(pulled, adapter)
    assert {path.name for path in pulled.iterdir()} == {path.name for path in adapter.iterdir()} | {MANIFEST}


def test_a_card_that_was_edited_on_the_hub_is_pulled(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    (adapter / "README.md").write_text("as pushed")
    registry = HubRegistry(hub.address)
    registry.push(adapter, describe(adapter, "my-org/reviews"))
    hub.repositories["my-org/reviews"].commit({"README.md": b"as edited"})
    pulled = registry.pull(registry.find("my-org/reviews"), tmp_path / "pulled")
    assert (pulled / "README.md").read_text() == "as edited"


def test_nothing_but_an_adapter_is_replaced(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    pushed = registry.push(adapter, describe(adapter, "reviews"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="holds no adapter"):
        registry.pull(pushed, tmp_path / "notes")
    assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"


def test_a_revision_is_of_its_files(adapter: Path, tmp_path: Path) -> None:
    registry = FolderRegistry(str(tmp_path / "registry"))
    pushed = registry.push(adapter, describe(adapter, "reviews"))
    manifest = tmp_path / "registry" / "reviews" / pushed.revision / MANIFEST
    manifest.write_text(manifest.read_text().replace(pushed.files["adapter.safetensors"][0], ""))
    with pytest.raises(MalformedCheckpoint, match="is not of the files"):
        registry.find("reviews")


def test_a_repository_of_adapterhubs_library_is_pulled_too(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    from hub_server import Repository

    hub.repositories["AdapterHub/reviews"] = Repository()
    hub.repositories["AdapterHub/reviews"].commit({p.name: p.read_bytes() for p in adapter.iterdir()})
    address = address_of("@ukp/reviews")
    registry = HubRegistry(hub.address)
    assert_same(registry.pull(registry.find(address.name), tmp_path / "pulled"), adapter)


def test_what_the_hub_refuses_is_told(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    registry = HubRegistry(hub.address)
    registry.push(adapter, describe(adapter, "my-org/reviews"))
    with pytest.raises(AdapterNotFound, match="no such revision"):
        registry.find("my-org/reviews", "v9")
    with pytest.raises(AdapterNotFound, match="no my-org/other"):
        registry.find("my-org/other")
    hub.repositories["my-org/reviews"].is_gated = True
    with pytest.raises(Unavailable, match="is gated"):
        registry.find("my-org/reviews")


def test_a_connection_that_drops_is_taken_up_again_or_told(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    registry = HubRegistry(hub.address)
    registry.push(adapter, describe(adapter, "my-org/reviews"))
    hub.dropped["adapter.safetensors"] = 100
    with pytest.raises(Unavailable, match="pull of my-org/reviews failed"):
        registry.pull(registry.find("my-org/reviews"), tmp_path / "pulled")
    assert list(tmp_path.glob("*pulled*")) == []
    hub.dropped.clear()
    assert_same(registry.pull(registry.find("my-org/reviews"), tmp_path / "pulled"), adapter)


def test_a_checksum_that_does_not_hold_is_told(hub: Hub, adapter: Path, tmp_path: Path) -> None:
    registry = HubRegistry(hub.address)
    registry.push(adapter, describe(adapter, "my-org/reviews"))
    hub.damaged.add("adapter.safetensors")
    with pytest.raises(MalformedCheckpoint, match=r"adapter\.safetensors has sha256"):
        registry.pull(registry.find("my-org/reviews"), tmp_path / "pulled")
    assert list(tmp_path.glob("*pulled*")) == []


def test_credentials_are_those_of_the_longest_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "origins.toml"
    file.write_text('["s3://a"]\nkey = "outer"\n["s3://a/b"]\nkey = "env:TEAM_KEY"\n')
    monkeypatch.setenv("ADAPTERD_ORIGINS", str(file))
    monkeypatch.setenv("TEAM_KEY", "inner")
    assert credentials("s3://a/b/c") == {"key": "inner"}
    assert credentials("s3://a/x") == {"key": "outer"}
    assert credentials("s3://z") == {}
    assert credentials("s3://ab") == credentials("s3://a.evil.net/b") == {}
    monkeypatch.delenv("TEAM_KEY")
    with pytest.raises(InvalidInput, match="TEAM_KEY, which is not set"):
        credentials("s3://a/b")


def test_errors_show_no_credentials(adapter: Path) -> None:
    class Failing(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "failing"

        def exists(self, path: str, **_: Any) -> bool:
            raise OSError("403 for https://user:pa55@host/x?token=t0psecret&Signature=abc hf_abcdefghij")

    fsspec.register_implementation("failing", Failing, clobber=True)
    with pytest.raises(Unavailable) as caught:
        FolderRegistry("failing://bucket", {"key": "k3y"}).push(adapter, describe(adapter, "reviews"))
    said = caught.value.message
    assert "403" in said and not any(secret in said for secret in ("pa55", "t0psecret", "abc", "k3y"))


@pytest.mark.parametrize(
    ("text", "registry", "expected"),
    [
        ("reviews@v1", "s3://a", ("s3://a", "reviews", "v1")),
        ("reviews", "/tmp/r", ("/tmp/r", "reviews", "main")),
        ("name@v2", "hub:org", ("hub:", "org/name", "v2")),
        ("hub:org/name@v2", "", ("hub:", "org/name", "v2")),
        ("org/name", "", ("hub:", "org/name", "main")),
        ("@ukp/bert-base_sst2", "", ("hub:", "AdapterHub/bert-base_sst2", "main")),
    ],
)
def test_addresses(text: str, registry: str, expected: tuple[str, str, str]) -> None:
    address = address_of(text, registry)
    assert (address.registry, address.name, address.revision) == expected
