"""What folders of adapters hold besides single adapters: fusion layers and saved setups. Reads configurations only."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters_cache.formats.fusions import FUSION_CONFIG, fusion_config, is_fusion
from adapters_cache.formats.safe_file import read_json
from adapters_cache.formats.setups import Setup, is_setup, read_setup
from adapters_cache.registry import is_name
from adapters_cache.trees import node_of
from server.composition import Node, check_nesting
from server.errors import AdapterdError, InvalidInput, UnsupportedConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FusionFacts:
    """A fusion layer's own name and the names of the adapters that it was trained with."""

    name: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """A composition with a name, and the heads that answer unless a request names others."""

    tree: Node
    heads: tuple[str, ...] = ()


@dataclass(slots=True)
class Catalog:
    """
    fusions   by the name they are registered under
    named     saved setups by the name of their folder
    members   what setups consist of: registered name -> folder
    """

    fusions: dict[str, FusionFacts] = field(default_factory=dict)
    named: dict[str, Named] = field(default_factory=dict)
    members: dict[str, Path] = field(default_factory=dict)


def scan(folders: Sequence[Path]) -> Catalog:
    """Every fusion and setup in `folders`; of two with one name the earlier folder's counts. Not on the event loop.

    What cannot be read is left out with a warning: a fusion's adapters are served all the same.
    """
    catalog = Catalog()
    for folder in folders:
        for path in sorted(folder.iterdir()):
            try:
                if is_fusion(path) and path.name not in catalog.fusions:
                    catalog.fusions[path.name] = fusion_facts(path)
                elif is_setup(path) and path.name not in catalog.named:
                    _add_setup(catalog, path)
            except AdapterdError as error:
                log.warning("folder %r is left out: %s", path.name, error.message)
            except Exception:  # whatever it holds, it keeps no server from starting
                log.exception("folder %r is left out", path.name)
    return catalog


def find_fusion(folders: Sequence[Path], name: str) -> FusionFacts | None:
    """The fusion of one registered name. Reads a file: not on the event loop. Raises as the format does."""
    path = next((folder / name for folder in folders if is_fusion(folder / name)), None)
    return fusion_facts(path) if path is not None else None


def fusion_facts(path: Path) -> FusionFacts:
    envelope = read_json(path / FUSION_CONFIG)
    members = tuple(fusion_config(envelope)["members"])
    name = envelope.get("name")
    return FusionFacts(name if isinstance(name, str) and name else ",".join(members), members)


def _add_setup(catalog: Catalog, path: Path) -> None:
    if not is_name(path.name):
        raise InvalidInput("it cannot be a composition's name")
    setup = read_setup(path)
    folders = {**setup.adapters, **setup.fusions}

    def full(name: str) -> str:
        return f"{path.name}/{name}" if name in folders else name

    if setup.tree is None:
        raise UnsupportedConfig("the setup holds no composition")
    tree = node_of(setup.tree, full)
    check_nesting(tree)
    named = Named(tree, tuple(full(name) for name in _heads(setup)))
    if bad := [name for name in folders if not is_name(full(name))]:
        raise InvalidInput(f"{bad[0]!r} cannot be an adapter's name")
    catalog.named[path.name] = named
    catalog.members |= {full(name): folder for name, folder in folders.items()}
    catalog.fusions |= {full(name): _renamed(fusion_facts(folder), full) for name, folder in setup.fusions.items()}


def _renamed(facts: FusionFacts, full: object) -> FusionFacts:
    """As those say it who name the setup's members in full."""
    assert callable(full)
    members = tuple(full(name) for name in facts.members)
    return FusionFacts(",".join(members) if facts.name == ",".join(facts.members) else full(facts.name), members)


def _heads(setup: Setup) -> Sequence[str]:
    head = setup.head
    if head is None:
        return ()
    names = head if isinstance(head, list) else [head]
    if any(isinstance(name, Mapping) for name in names):
        raise UnsupportedConfig("heads that are routed by rows: every request names its own head instead")
    return [str(name) for name in names]
