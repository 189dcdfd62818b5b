"""Stage 3 for whole expressions: a composition -> its parts, all leased, and the target that samples go through.

Beside the names of single adapters there are:
    name                a composition from the configuration, "name = Stack(de, ner)" or "name = Fuse(a, b) : head"
    setup               a folder with an adapter_setup.json, as AdapterHub's library saves compositions
    setup/member        an adapter, head or fusion inside of it
A fusion is registered under the name of its folder and found by that or by its own name, usually "a,b".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from adapters_cache.adapters import ALL, Adapters
from adapters_cache.catalog import FusionFacts, Named, find_fusion, scan
from adapters_cache.naming import expanded, named_of
from adapters_cache.registry import is_name, no_version
from adapters_cache.statuses import Page
from adapters_cache.targets import make_target
from server.composition import Fuse, Leaf, Node, branches, fuses, last_leaf, leaves, text_of
from server.config import CacheConfig
from server.core import (
    ANYONE,
    BASE,
    Adapter,
    AdapterStatus,
    BaseInfo,
    HostLease,
    Target,
    Tenant,
    Tier,
    Wanted,
    target_of,
)
from server.errors import AdapterNotFound, InvalidInput
from server.expression import parse
from server.tenants import require_use

log = logging.getLogger(__name__)
_parse = lru_cache(maxsize=4096)(parse)
TIERS = (Tier.ORIGIN, Tier.DISK, Tier.HOST, Tier.DEVICE)


class TargetLease:
    """See `server.core.TargetLease`."""

    __slots__ = ("_leases", "names", "target", "version")

    def __init__(
        self,
        target: Target,
        names: tuple[tuple[str, str], ...],
        leases: Sequence[HostLease],
        version: tuple[str, str] | None = None,
    ) -> None:
        self.target, self.names, self._leases, self.version = target, names, leases, version

    def release(self) -> None:
        leases, self._leases = self._leases, ()
        for lease in leases:
            lease.release()


class Compositions:
    """What requests name, ready when asked for; to administrators the same names as `Adapters`, and compositions."""

    def __init__(self, adapters: Adapters, config: CacheConfig, base: BaseInfo) -> None:
        self._adapters, self._config, self._base = adapters, config, base
        self._fusions: dict[str, FusionFacts] = {}
        self._fusion_names: dict[str, list[str]] = {}  # own and registered name -> registered names
        self._named: dict[str, Named] = {}
        self._from_folders: set[str] = set()  # of these, the ones that are saved setups

    async def start(self) -> None:
        """Find what the folders hold besides adapters, and read the configured compositions. After `Adapters.start`.

        Raises InvalidInput for a composition that cannot be, or whose name is taken.
        """
        await self._look()
        for text in self._config.compositions:
            self._add_named(*named_of(text, self._named))
        self._adapters.on_change = self._look

    async def _look(self) -> None:
        """Take in what folders hold besides adapters. A setup whose name is taken is left out, with a warning."""
        catalog = await asyncio.to_thread(scan, self._config.adapters)
        for name, source in catalog.members.items():
            self._adapters.register(name, source)
        self._fusions, self._fusion_names = {}, {}
        for name, facts in catalog.fusions.items():
            self._add_fusion(name, facts)
        for name in self._from_folders:
            del self._named[name]
        self._from_folders = set()
        for name, named in catalog.named.items():
            try:
                self._add_named(name, named)
            except InvalidInput as error:
                log.warning("a saved setup is left out: %s", error.message)
                continue
            self._from_folders.add(name)

    def _add_fusion(self, name: str, facts: FusionFacts) -> None:
        if is_name(name):
            self._fusions[name] = facts
            for known_as in {name, facts.name}:
                names = self._fusion_names.setdefault(known_as, [])
                if name not in names:
                    names.append(name)

    def _add_named(self, name: str, named: Named) -> None:
        if name in self._named or self._is_registered(name) or not is_name(name):
            raise InvalidInput(f"composition {name!r} has a name that is taken or cannot be one; choose another")
        self._named[name] = named

    def _is_registered(self, name: str) -> bool:
        try:
            self._adapters.get(name)
        except AdapterNotFound:
            return False
        return True

    # requests

    def check(self, expression: str, tenant: Tenant = ANYONE) -> None:
        """Raises AdapterNotFound and InvalidInput for what no adapter can answer to this tenant. Loads nothing."""
        tree, _ = self._tree(expression, tenant)
        for name in self._names(tree, tenant):
            self._adapters.get(name)

    async def ready(
        self,
        expression: str,
        heads: Sequence[str] = (),
        skip_layers: Iterable[int] = (),
        key: str = "",
        tenant: Tenant = ANYONE,
        version: str = "",
    ) -> TargetLease:
        """Lease every part of a composition in host memory, or none, loading them if need be.

        version   the first digits of the digest that has to answer
        Raises InvalidInput, AdapterNotFound for what the tenant may not use and for a version that does not answer, and
        as `Adapters.ready` for each part.
        """
        lease = await self._ready(expression, heads, skip_layers, key, tenant, version)
        digest = lease.target.digest if lease.target.parts else self._base.fingerprint
        if not digest.startswith(version):
            lease.release()
            raise no_version(expression, version, [digest])
        return lease

    async def _ready(
        self,
        expression: str,
        heads: Sequence[str],
        skip_layers: Iterable[int],
        key: str,
        tenant: Tenant,
        version: str,
    ) -> TargetLease:
        skipped = frozenset(skip_layers)
        if not heads and not skipped and self._is_single(expression):
            require_use(tenant, expression)
            return await self._ready_single(expression, key, version)
        for layer in sorted(skipped):
            if not 0 <= layer < self._base.num_layers:
                raise InvalidInput(
                    f"skip_layers holds {layer}; the base has the layers 0 to {self._base.num_layers - 1}"
                )
        tree, own_heads = self._tree(expression, tenant)
        heads = tuple(heads) or own_heads
        leases: dict[str, HostLease] = {}
        try:
            leases |= await self._lease_all(self._names(tree, tenant), key)
            leases |= await self._lease_all(self._other_heads(heads, leases, tenant), key)
            target = self._target(tree, leases, heads, skipped, tenant)
        except BaseException:
            for lease in leases.values():
                lease.release()
            raise
        return TargetLease(target, _branch_names(tree, target, heads), tuple(leases.values()))

    def _is_single(self, expression: str) -> bool:
        return "(" not in expression and expression not in self._named and expression != BASE

    async def _ready_single(self, name: str, key: str, version: str) -> TargetLease:
        """What nearly every request asks for, by the short way: one adapter with its own head."""
        lease = await self._adapters.ready(name, key, version)
        adapter = _adapter(lease)
        if adapter.spec.fusion is not None:
            lease.release()
            raise _is_a_fusion(name, adapter)
        target = target_of(adapter)
        shared = (name, adapter.digest) if self._adapters.is_shared(name) else None
        return TargetLease(target, ((name, name if target.branches[0].head is not None else ""),), (lease,), shared)

    def _tree(self, expression: str, tenant: Tenant = ANYONE) -> tuple[Node | None, tuple[str, ...]]:
        """What an expression says, without named compositions; and the heads that a named one brings along.

        Raises AdapterNotFound for a name in it that the tenant may not use. A named composition is allowed as a whole.
        """
        if "(" in expression:
            tree = _parse(expression)
            for name in dict.fromkeys(str(leaf.adapter) for leaf in leaves(tree)):
                require_use(tenant, name)
            tree = expanded(tree, self._named)
            for node in fuses(tree):
                self._fusion(node, tenant)
            return tree, ()
        require_use(tenant, expression)
        if expression == BASE:
            return None, ()
        if (named := self._named.get(expression)) is not None:
            return named.tree, named.heads
        return Leaf(expression), ()

    def _names(self, tree: Node | None, tenant: Tenant = ANYONE) -> list[str]:
        """Of every part, each once, as they are registered."""
        if tree is None:
            return []
        members = [str(leaf.adapter) for leaf in leaves(tree)]
        return list(dict.fromkeys([*members, *(self._fusion(node, tenant) for node in fuses(tree))]))

    def _fusion(self, node: Fuse, tenant: Tenant) -> str:
        """By its folder's name, or by its own among those that the tenant may use: anyone can call a fusion so."""
        name = str(node.fusion)
        usable = [known for known in self._fusion_names.get(name, ()) if tenant.may_use(known)]
        if not usable:
            raise _unknown_fusion(name)
        if name in usable or len(usable) == 1:
            return name if name in usable else usable[0]
        raise InvalidInput(
            f"{len(usable)} fusions are called {name[:128]!r}: name a folder, {', '.join(sorted(usable)[:8])}"
        )

    async def _lease_all(self, names: Sequence[str], key: str) -> dict[str, HostLease]:
        """All or none. Several are loaded side by side."""
        if not names:
            return {}
        if len(names) == 1:
            return {names[0]: await self._adapters.ready(names[0], key)}
        tasks = [asyncio.ensure_future(self._adapters.ready(name, key)) for name in names]
        try:
            return dict(zip(names, await asyncio.gather(*tasks), strict=True))
        except BaseException:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if not isinstance(outcome, BaseException):
                    outcome.release()
            raise

    def _other_heads(self, heads: Sequence[str], leases: dict[str, HostLease], tenant: Tenant) -> list[str]:
        """Those of `heads` that are other adapters' which the tenant may use."""
        known = {head.name for lease in leases.values() for head in _adapter(lease).spec.all_heads}
        others = dict.fromkeys(name for name in heads if name not in known and name not in leases)
        return [name for name in others if tenant.may_use(name) and self._is_registered(name)]

    def _target(
        self,
        tree: Node | None,
        leases: dict[str, HostLease],
        heads: Sequence[str],
        skipped: frozenset[int],
        tenant: Tenant,
    ) -> Target:
        adapters = {name: _adapter(lease) for name, lease in leases.items()}
        for leaf in leaves(tree) if tree is not None else ():
            if adapters[str(leaf.adapter)].spec.fusion is not None:
                raise _is_a_fusion(str(leaf.adapter), adapters[str(leaf.adapter)])
        nodes = fuses(tree) if tree is not None else ()
        fusions = {str(node.fusion): adapters[self._fusion(node, tenant)] for node in nodes}
        return make_target(tree, adapters, fusions, heads, skipped)

    # administration

    def list(self, wanted: Wanted = ALL, *, after: str = "", limit: int = 100) -> Page:
        """See `Adapters.list`; compositions stand among the adapters."""
        names = [name for name in sorted(self._named) if name.startswith(wanted.prefix) and wanted.tenant.may_use(name)]
        named = [self._status(name) for name in names]
        own = [status for status in named if _fits(status, wanted)]
        page, total = self._adapters.list(wanted, after=after, limit=limit)
        statuses = [self._described(status) for status in page]
        statuses += [status for status in own if status.name > after]
        return sorted(statuses, key=lambda status: status.name)[:limit], total + len(own)

    def get(self, name: str) -> AdapterStatus:
        """Raises AdapterNotFound."""
        return self._status(name) if name in self._named else self._described(self._adapters.get(name))

    async def load(self, name: str, percent: int = 100) -> tuple[AdapterStatus, str]:
        """See `Adapters.load`; a fusion's folder that is new is found too."""
        self._require_single(name)
        status, previous = await self._adapters.load(name, percent)
        facts = await asyncio.to_thread(find_fusion, self._config.adapters, name)
        if facts is not None and "/" not in name:
            self._add_fusion(name, facts)
        return self._described(status), previous

    async def unload(self, name: str) -> tuple[int, int, int]:
        self._require_single(name)
        return await self._adapters.unload(name)

    async def pin(self, name: str, is_pinned: bool) -> AdapterStatus:
        self._require_single(name)
        return self._described(await self._adapters.pin(name, is_pinned))

    def prefetch(self, names: Sequence[str], tenant: Tenant = ANYONE) -> int:
        """See `Adapters.prefetch`; of compositions, their parts. Raises AdapterNotFound for what it may not use."""
        parts = {part: None for name in names for part in self._names(self._tree(name, tenant)[0], tenant)}
        return self._adapters.prefetch(list(parts))

    async def card(self, name: str) -> str:
        """See `Adapters.card`."""
        self._require_single(name)
        return await self._adapters.card(name)

    async def set_traffic(self, name: str, shares: Mapping[str, int]) -> AdapterStatus:
        self._require_single(name)
        return self._described(await self._adapters.set_traffic(name, shares))

    def _require_single(self, name: str) -> None:
        if name in self._named:
            parts = ", ".join(dict.fromkeys(str(leaf.adapter) for leaf in leaves(self._named[name].tree)))
            raise InvalidInput(f"{name!r} is a composition and holds nothing itself; name its parts: {parts}")

    def _described(self, status: AdapterStatus) -> AdapterStatus:
        facts = self._fusions.get(status.name)
        if facts is None:
            return status
        return replace(status, method="fusion", composition=f"Fuse({', '.join(facts.members)}; {status.name})")

    def _status(self, name: str) -> AdapterStatus:
        """Of a composition: as near as the farthest of its parts, which hold the bytes."""
        named = self._named[name]
        status = AdapterStatus(
            name, Tier.ORIGIN, method="composition", heads=named.heads, composition=text_of(named.tree)
        )
        try:
            parts = [self._adapters.get(part) for part in self._names(named.tree)]
        except AdapterNotFound as error:
            return replace(status, error=error.message)
        last = last_leaf(named.tree).adapter
        head = next((part for part in parts if part.name == last), None) if not named.heads else None
        return replace(
            status,
            tier=min((part.tier for part in parts), key=TIERS.index),
            task=head.task if head else "",
            labels=head.labels if head else (),
            method="composition",
            heads=named.heads,
            composition=text_of(named.tree),
            error=next((part.error for part in parts if part.error), ""),
        )


def _fits(status: AdapterStatus, wanted: Wanted) -> bool:
    is_named_so = wanted.contains in status.name
    return (
        is_named_so
        and (not wanted.task or status.task == wanted.task)
        and (wanted.tier is None or status.tier is wanted.tier)
    )


def _adapter(lease: HostLease) -> Adapter:
    assert lease.adapter is not None, "the base is no part of a composition"
    return lease.adapter


def _unknown_fusion(name: str) -> AdapterNotFound:
    return AdapterNotFound(
        f"no fusion is registered as {name[:128]!r}; name its folder: Fuse(..; folder)", adapter=name[:128]
    )


def _is_a_fusion(name: str, adapter: Adapter) -> InvalidInput:
    assert adapter.spec.fusion is not None
    members = ", ".join(adapter.spec.fusion.members)
    return InvalidInput(f"{name!r} is a fusion layer; use it as Fuse({members}; {name})")


def _branch_names(tree: Node | None, target: Target, heads: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The expression and the head of each branch, by the names that the request knows them by."""
    trees = branches(tree) if tree is not None else [None]
    number = len(target.branches)
    texts = [text_of(branch) if branch is not None else BASE for branch in trees]
    texts = texts * number if len(texts) == 1 else texts
    if heads:
        return tuple(zip(texts, list(heads) * number if len(heads) == 1 else heads, strict=True))
    own = [str(last_leaf(branch).adapter) if branch is not None else "" for branch in trees]
    return tuple(
        (text, name if branch.head is not None else "")
        for text, name, branch in zip(texts, own, target.branches, strict=True)
    )
