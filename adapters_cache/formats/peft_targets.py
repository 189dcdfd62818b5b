"""Which modules a PEFT configuration means. Its patterns come from strangers, so only harmless ones are evaluated."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from adapters_cache.formats.fields import refusal

ALL_LINEAR = "all-linear"
MAX_PATTERN = 500  # characters
MAX_REPEATS = 3  # unbounded quantifiers; matching a name of n characters takes at most about n**3 steps
_UNBOUNDED = re.compile(r"[*+{]")  # escaped ones too: too careful is fine
_REPEATED_GROUP = re.compile(r"\)[*+{]")


def safe_regex(field: str, value: str) -> str:
    """Give a regular expression back. Raises UnsupportedConfig unless it is valid and cheap on every input."""
    is_cheap = (
        len(value) <= MAX_PATTERN
        and len(_UNBOUNDED.findall(value)) <= MAX_REPEATS
        and not _REPEATED_GROUP.search(value)
    )
    if not is_cheap:
        raise refusal(field, value, f"a pattern of at most {MAX_REPEATS} repetitions, none of them of a group")
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError):
        raise refusal(field, value, "a regular expression") from None
    return value


def patterns(check: Callable[[str, Any], Any]) -> Callable[[str, Any], list[list[Any]]]:
    """A check for {module name or regular expression: value}; gives pairs, because their order counts."""

    def checked(field: str, value: Any) -> list[list[Any]]:
        if value is None:
            return []
        if not isinstance(value, dict):
            raise refusal(field, value, "an object")
        return [[safe_regex(field, key), check(f"{field}.{key}", item)] for key, item in value.items()]

    return checked


def value_of(table: list[list[Any]], module: str, default: Any) -> Any:
    """The entry of `rank_pattern` or `alpha_pattern` for a module: the first that matches."""
    for pattern, value in table:
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would adapt the module of this full name."""
    saved = config["modules_to_save"]
    excluded = config.get("exclude_modules")
    if any(re.match(rf"(^|.*\.){re.escape(name)}($|\..*)", module) for name in saved):
        return False
    if excluded is not None and _names(excluded, module):
        return False
    targets = config["target_modules"]
    if targets == ALL_LINEAR:
        return True
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return _names(targets, module) and _is_chosen_layer(config, module)


def is_feedforward(config: Mapping[str, Any], module: str) -> bool:
    """Whether IA3 scales the input of this module, not its output."""
    chosen = config["feedforward_modules"]
    if isinstance(chosen, str):
        return re.fullmatch(chosen, module) is not None
    return any(module.endswith(name) for name in chosen)


def _names(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _is_chosen_layer(config: Mapping[str, Any], module: str) -> bool:
    chosen = config.get("layers_to_transform")
    if chosen is None:
        return True
    named = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in config.get("layers_pattern", ())]
    for pattern in named or [r".*?\.[^.]*\.(\d+)\."]:
        if match := re.match(pattern, module):
            return int(match[1]) in chosen
    return False
