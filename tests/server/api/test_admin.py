"""The Adapters service on a registry that the test writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from adapterd.v1 import adapters_pb2 as v1
from server.api.admin import AdaptersServicer
from server.api.publish import Publisher
from server.audit import Audit
from server.core import ANYONE, AdapterStatus, Manifest, Tier, Wanted
from server.errors import AdapterNotFound, InvalidInput

CONTEXT: Any = None  # the admin methods do not look at it


class Registry:
    """Five names; Get and Load know "a0" only."""

    def __init__(self) -> None:
        self.names = [f"a{i}" for i in range(5)]

    async def list(self, wanted: Wanted, *, after: str = "", limit: int = 100) -> tuple[list[AdapterStatus], int]:
        names = [name for name in self.names if name.startswith(wanted.prefix)]
        page = [AdapterStatus(name, Tier.ORIGIN) for name in names if name > after]
        return page[:limit], len(names)

    async def get(self, name: str, tenant: str = "") -> AdapterStatus:
        if name != "a0":
            raise AdapterNotFound(f"no adapter is registered as {name!r}")
        manifest = Manifest(name, "d" * 64, "bottleneck", "bert", 32, 1234)
        return AdapterStatus(name, Tier.DEVICE, manifest, "multi_label", ("x", "y"), 10, 20, True, 1.5, 2.5, "")

    async def load(self, name: str, tenant: str = "", percent: int = 100) -> tuple[AdapterStatus, str]:
        return await self.get(name), "before"

    async def unload(self, name: str, tenant: str = "") -> tuple[int, int, int]:
        return 10, 20, 30

    async def prefetch(self, names: Sequence[str], tenant: str = "") -> int:
        return len(names)

    async def set_traffic(self, name: str, shares: Mapping[str, int], tenant: str = "") -> AdapterStatus:
        return await self.get(name)

    async def pin(self, name: str, is_pinned: bool, tenant: str = "") -> AdapterStatus:
        return await self.get(name)


@pytest.fixture
def servicer() -> AdaptersServicer:
    return AdaptersServicer(Registry(), v1.Base(name="tiny"), Publisher(Registry(), None, 1, Audit()), Audit())


async def test_pages_cover_every_name_once(servicer: AdaptersServicer) -> None:
    seen, token = [], ""
    for expected_size in (2, 2, 1):
        page = await servicer.List(v1.ListRequest(page_size=2, page_token=token), CONTEXT, ANYONE)
        assert (len(page.adapters), page.num_adapters, page.base.name) == (expected_size, 5, "tiny")
        seen += [adapter.name for adapter in page.adapters]
        token = page.next_page_token
    assert token == "" and seen == ["a0", "a1", "a2", "a3", "a4"]


async def test_a_page_that_ends_with_the_list_has_no_next(servicer: AdaptersServicer) -> None:
    page = await servicer.List(v1.ListRequest(page_size=5), CONTEXT, ANYONE)
    assert len(page.adapters) == 5 and page.next_page_token == ""


@pytest.mark.parametrize("page_size", [-1, 1001])
async def test_page_size_outside_its_limits_is_refused(servicer: AdaptersServicer, page_size: int) -> None:
    with pytest.raises(InvalidInput, match=str(page_size)):
        await servicer.List(v1.ListRequest(page_size=page_size), CONTEXT, ANYONE)


async def test_get_tells_all_that_is_known(servicer: AdaptersServicer) -> None:
    adapter = (await servicer.Get(v1.GetRequest(name="a0"), CONTEXT, ANYONE)).adapter
    assert (adapter.digest, adapter.method, adapter.num_parameters) == ("d" * 64, "bottleneck", 1234)
    assert (adapter.task, adapter.tier) == (v1.TASK_MULTI_LABEL, v1.TIER_DEVICE)
    assert (adapter.host_bytes, adapter.device_bytes, adapter.is_pinned) == (10, 20, True)
    assert list(adapter.labels) == ["x", "y"]
    assert adapter.loaded_at.ToMilliseconds() == 1500 and adapter.last_used_at.ToMilliseconds() == 2500


async def test_load_tells_the_digest_before(servicer: AdaptersServicer) -> None:
    reply = await servicer.Load(v1.LoadRequest(name="a0"), CONTEXT, ANYONE)
    assert reply.previous_digest == "before" and reply.adapter.name == "a0"


async def test_unload_tells_the_bytes_given_back(servicer: AdaptersServicer) -> None:
    reply = await servicer.Unload(v1.UnloadRequest(name="a0"), CONTEXT, ANYONE)
    assert (reply.host_bytes_freed, reply.device_bytes_freed, reply.disk_bytes_freed) == (10, 20, 30)


async def test_a_name_is_required(servicer: AdaptersServicer) -> None:
    with pytest.raises(InvalidInput, match="empty"):
        await servicer.Get(v1.GetRequest(), CONTEXT, ANYONE)


async def test_the_base_is_no_adapter_to_be_moved(servicer: AdaptersServicer) -> None:
    for call in (
        servicer.Get(v1.GetRequest(name="base"), CONTEXT, ANYONE),
        servicer.Load(v1.LoadRequest(name="base"), CONTEXT, ANYONE),
        servicer.Unload(v1.UnloadRequest(name="base"), CONTEXT, ANYONE),
        servicer.Pin(v1.PinRequest(name="base", is_pinned=True), CONTEXT, ANYONE),
    ):
        with pytest.raises(InvalidInput, match="'base' is the base model itself and always loaded"):
            await call
