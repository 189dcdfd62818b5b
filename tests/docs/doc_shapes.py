"""Whether what a page shows is what comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

MORE = "..."
HEX = re.compile(r"\b[0-9a-f]{8,64}\b")
NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e-?\d+)?")


def differences(shown: Any, real: Any, where: str = "$") -> Iterator[str]:
    """What of a JSON value is not as shown. Numbers may differ, texts and names not.

    "..." at the end of a list, or as a key, stands for more; a text that ends with it for texts that begin so.
    """
    if isinstance(shown, dict) and isinstance(real, dict):
        missing, surplus = shown.keys() - real.keys() - {MORE}, real.keys() - shown.keys()
        yield from (f"{where}.{key} does not come back" for key in sorted(missing))
        if surplus and MORE not in shown:
            yield f"{where} has {', '.join(sorted(surplus))} too"
        for key in shown.keys() & real.keys():
            yield from differences(shown[key], real[key], f"{where}.{key}")
    elif isinstance(shown, list) and isinstance(real, list):
        has_more = bool(shown) and shown[-1] == MORE
        items = shown[:-1] if has_more else shown
        if len(items) > len(real) or (len(items) < len(real) and not has_more):
            yield f"{where} has {len(real)} elements"
        for index, (one, other) in enumerate(zip(items, real, strict=False)):
            yield from differences(one, other, f"{where}[{index}]")
    elif isinstance(shown, str) and isinstance(real, str):
        if shown.endswith(MORE):
            if HEX.fullmatch(shown.removesuffix(MORE)):
                if not HEX.fullmatch(real):
                    yield f"{where} is {real!r}, no digest"
            elif not real.startswith(shown.removesuffix(MORE)):
                yield f"{where} is {real!r}"
        elif masked(shown) != masked(real):
            yield f"{where} is {real!r}"
    elif is_number(shown) != is_number(real) or (not is_number(shown) and shown != real):
        yield f"{where} is {real!r}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def masked(text: str) -> str:
    """Without what differs from run to run: digests, numbers, blanks."""
    return " ".join(NUMBER.sub("N", HEX.sub("H", text)).split())


def missing_lines(shown: str, real: str) -> list[str]:
    """Lines of `shown` that `real` does not have, in this order; a line "..." stands for any."""
    rest = [masked(line) for line in real.splitlines()]
    missing = []
    for line in shown.splitlines():
        if not line.strip() or line.strip() == MORE:
            continue
        wanted = masked(line)
        at = next((index for index, one in enumerate(rest) if fits(wanted, one)), None)
        if at is None:
            missing.append(line)
        else:
            rest = rest[at + 1 :]
    return missing


def fits(wanted: str, line: str) -> bool:
    return line.startswith(wanted.removesuffix(MORE).rstrip()) if wanted.endswith(MORE) else wanted == line
