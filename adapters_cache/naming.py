"""Compositions that have names: how the configuration writes them, and what an expression becomes that uses them."""

from __future__ import annotations

from collections.abc import Mapping

from adapters_cache.catalog import Named
from server.composition import Average, Fuse, Leaf, Node, Parallel, Split, Stack, check_nesting, fusion_name, leaves
from server.core import BASE
from server.errors import InvalidInput
from server.expression import MAX_LEAVES, parse


def named_of(text: str, known: Mapping[str, Named]) -> tuple[str, Named]:
    """Read "name = Stack(de, ner)" or "name = Fuse(a, b) : head". Raises InvalidInput.

    known   compositions that the expression may use
    """
    name, equals, rest = text.partition("=")
    expression, colon, heads = rest.partition(":")
    if not equals or not name.strip() or not expression.strip() or (colon and not heads.strip()):
        raise InvalidInput(f'composition {text!r} is not of the form "name = Stack(de, ner)" or "name = ... : head"')
    names = tuple(head.strip() for head in heads.split(",")) if colon else ()
    return name.strip(), Named(expanded(parse(expression.strip()), known), names)


def expanded(tree: Node, named: Mapping[str, Named]) -> Node:
    """The tree with compositions in place of their names. Raises InvalidInput for what may not be nested."""
    names = [str(leaf.adapter) for leaf in leaves(tree)]
    if BASE in names:
        raise InvalidInput(f"{BASE!r} is the base model alone and no part of a composition; leave it out")
    if named.keys().isdisjoint(names):
        return tree
    tree = _replaced(tree, named)
    if (number := sum(1 for _ in leaves(tree))) > MAX_LEAVES:
        raise InvalidInput(f"the composition comes to {number} adapters, the limit is {MAX_LEAVES}")
    check_nesting(tree)
    return tree


def _replaced(node: Node, named: Mapping[str, Named]) -> Node:
    if isinstance(node, Leaf):
        found = named.get(str(node.adapter))
        return found.tree if found else node
    children = tuple(_replaced(child, named) for child in node.children)
    if isinstance(node, Fuse):
        is_default = node.fusion == fusion_name(node.children)
        return Fuse(children, fusion_name(children) if is_default else node.fusion)
    if isinstance(node, Average):
        return Average(children, node.weights)
    if isinstance(node, Split):
        return Split(children, node.lengths)
    if isinstance(node, Parallel):
        return Parallel(children)
    return Stack(tuple(part for child in children for part in _flat(child)))


def _flat(node: Node) -> tuple[Node, ...]:
    """A stack inside of a stack is one stack."""
    return node.children if isinstance(node, Stack) else (node,)
