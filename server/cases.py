"""A directory of recorded cases: its manifest and arrays, checked as they are read. See `docs/verify.md`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from server.errors import InvalidInput

Arrays = Mapping[str, NDArray[Any]]
Case = Mapping[str, Any]
FORMAT = 1
MANIFEST = "manifest.json"
KINDS: Mapping[str, type | tuple[type, ...]] = {
    "id": str,
    "base_dir": str,
    "adapters": list,
    "heads": list,
    "composition": (str, dict, type(None)),
    "head": (str, list, dict, type(None)),
    "inputs": str,
    "outputs": str,
    "tolerance": dict,
}


@dataclass(slots=True)
class Group:
    """The cases of one base, which is a directory or what `serve --base` takes."""

    base: str
    cases: list[Case] = field(default_factory=list)


def read_cases(root: Path, tag: str = "") -> list[Group]:
    """Give the cases that carry `tag`, or all. Raises InvalidInput where there are none or one is incomplete."""
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{root} holds no readable {MANIFEST} of recorded cases") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("cases"), list):
        raise InvalidInput(f"{MANIFEST} in {root} has no list of cases")
    if manifest.get("format") != FORMAT:
        raise InvalidInput(f"{MANIFEST} in {root} has format {manifest.get('format')!r}, expected {FORMAT}")
    cases = [_case(number, case) for number, case in enumerate(manifest["cases"], 1)]
    groups: dict[str, Group] = {}
    for case in cases:
        if not tag or tag in case["tags"]:
            groups.setdefault(case["base_dir"], Group(_base(root, case["base_dir"]))).cases.append(case)
    if not groups:
        tags = sorted({tag for case in cases for tag in case["tags"]})
        asked = f"no case has the tag {tag!r}; tags here: {', '.join(tags) or 'none'}"
        raise InvalidInput(asked if cases else f"{MANIFEST} in {root} lists no cases")
    return list(groups.values())


def _case(number: int, case: Any) -> Case:
    if not isinstance(case, dict):
        raise InvalidInput(f"case {number} of {MANIFEST} is not an object")
    for name, kind in KINDS.items():
        if name not in case or not isinstance(case[name], kind):
            raise InvalidInput(f"case {number} of {MANIFEST} ({case.get('id')}) lacks {name}, or it is of another type")
    for source in [*case["adapters"], *case["heads"]]:
        if not (isinstance(source, dict) and all(isinstance(source.get(key), str) for key in ("name", "dir"))):
            raise InvalidInput(f"case {case['id']} has an adapter or a head without name and dir")
    tolerance = case["tolerance"]
    if not all(isinstance(tolerance.get(name), int | float) and tolerance[name] >= 0 for name in ("atol", "rtol")):
        raise InvalidInput(f"case {case['id']} needs a tolerance with atol and rtol, numbers of at least 0")
    if tolerance["atol"] == 0:
        raise InvalidInput(f"case {case['id']} has atol 0, which no value near 0 can meet; record a small number")
    defaults = {"tags": [], "methods": [], "fusions": [], "base": Path(case["base_dir"]).name}
    return defaults | case


def _base(root: Path, base_dir: str) -> str:
    """A folder beside the cases, else what `serve --base` takes."""
    return str(root / base_dir) if (root / base_dir).is_dir() else base_dir


def read_arrays(root: Path, path: str, *needed: str) -> Arrays:
    """Give the arrays of a file. Raises InvalidInput where it cannot be read or lacks what is `needed`."""
    try:
        arrays: Arrays = load_file(root / path)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"{path} cannot be read") from error
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise InvalidInput(f"{path} lacks {', '.join(missing)}")
    return arrays
