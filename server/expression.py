"""Compositions as text: what stands in the adapter field of a request.

    expression := name | block "(" expression ("," expression)* (";" option ("," option)*)? ")"
    block      := Stack | Fuse | Average | Split | Parallel

Options are the weights of an Average (`normalize=false` keeps them as they are), the lengths of a Split, the name of a
Fuse's fusion layer.
"""

from __future__ import annotations

import math
import re

from server.composition import (
    Average,
    Fuse,
    Leaf,
    Node,
    Parallel,
    Split,
    Stack,
    average_weights,
    check_nesting,
    fusion_name,
)
from server.errors import InvalidInput

MAX_LENGTH = 4096
MAX_LEAVES = 128
MAX_DEPTH = 8
_TOKEN = re.compile(r"\s*([A-Za-z0-9_./+=-]+|[(),;])")
_BLOCKS = ("Stack", "Fuse", "Average", "Split", "Parallel")
_ROUTED = ("BatchSplit", "MultiTask")


def parse(text: str) -> Node:
    """The tree of an expression; a bare name is a leaf. Raises InvalidInput that shows where it stops making sense."""
    if len(text) > MAX_LENGTH:
        raise InvalidInput(f"the adapter expression has {len(text)} characters, the limit is {MAX_LENGTH}")
    parser = _Parser(text)
    node = parser.node()
    parser.expect_end()
    check_nesting(node)
    return node


class _Parser:
    """Reads one expression from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, int]] = []
        self._next = 0
        self._num_leaves = 0
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error("a name or one of ( ) , ;", position)
            self._tokens.append((match[1], match.start(1)))
            position = match.end()

    def node(self, depth: int = 0) -> Node:
        name = self._name()
        if depth > MAX_DEPTH:
            raise InvalidInput(f"the adapter expression is nested more than {MAX_DEPTH} deep")
        if self._peek() != "(":
            self._num_leaves += 1
            if self._num_leaves > MAX_LEAVES:
                raise InvalidInput(f"the adapter expression names more than {MAX_LEAVES} adapters")
            return Leaf(name)
        if name in _ROUTED:
            raise InvalidInput(f"{name} routes the rows of a batch; here every request names its own adapter instead")
        if name not in _BLOCKS:
            raise InvalidInput(f"{name!r} is no composition; there are {', '.join(_BLOCKS)}")
        self._take("(")
        children = [self.node(depth + 1)]
        while self._peek() == ",":
            self._take(",")
            children.append(self.node(depth + 1))
        options = self._options()
        self._take(")")
        return _block(name, tuple(children), options)

    def expect_end(self) -> None:
        if self._next < len(self._tokens):
            raise self._error("the end", self._tokens[self._next][1])

    def _options(self) -> list[str]:
        if self._peek() != ";":
            return []
        self._take(";")
        options = [self._name()]
        while self._peek() == ",":
            self._take(",")
            options.append(self._name())
        return options

    def _peek(self) -> str:
        return self._tokens[self._next][0] if self._next < len(self._tokens) else ""

    def _name(self) -> str:
        token = self._peek()
        if not token or token in "(),;":
            raise self._error("a name", self._position())
        self._next += 1
        return token

    def _take(self, wanted: str) -> None:
        if self._peek() != wanted:
            raise self._error(repr(wanted), self._position())
        self._next += 1

    def _position(self) -> int:
        return self._tokens[self._next][1] if self._next < len(self._tokens) else len(self._text)

    def _error(self, wanted: str, position: int) -> InvalidInput:
        found = self._text[position : position + 20] or "the end"
        return InvalidInput(f"adapter expression: expected {wanted} at character {position}, found {found!r}")


def _block(name: str, children: tuple[Node, ...], options: list[str]) -> Node:
    if name == "Average":
        flags = [option for option in options if option.startswith("normalize=")]
        numbers = [_number(option) for option in options if option not in flags]
        return Average(children, average_weights(numbers or None, len(children), normalize=_normalizes(flags)))
    if name == "Split":
        return Split(children, split_lengths([_length(option) for option in options], len(children)))
    if name == "Fuse":
        return Fuse(children, ",".join(options) or fusion_name(children))  # names of fusions hold commas
    if options:
        raise InvalidInput(f"{name} takes no options, found {', '.join(options)}")
    return Stack(children) if name == "Stack" else Parallel(children)


def _normalizes(flags: list[str]) -> bool:
    values = {"normalize=true": True, "normalize=false": False}
    for flag in flags:
        if flag.lower() not in values:
            raise InvalidInput(f"{flag!r} is not an option of Average; give normalize=true or normalize=false")
    return all(values[flag.lower()] for flag in flags)


def split_lengths(lengths: list[int], num_children: int) -> tuple[int, ...]:
    """One length for all children, or one each."""
    if len(lengths) == 1:
        lengths = lengths * num_children
    if len(lengths) != num_children:
        raise InvalidInput(f"Split has {num_children} members and {len(lengths)} lengths; give one length per member")
    return tuple(lengths)


def _number(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise InvalidInput(f"{text!r} is not a weight") from None
    if not math.isfinite(weight):
        raise InvalidInput(f"{text!r} is not a weight; give finite numbers")
    return weight


def _length(text: str) -> int:
    if not text.isdigit() or text == "0":
        raise InvalidInput(f"{text!r} is not a length; give whole numbers above 0")
    return int(text)
