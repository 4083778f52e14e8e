"""Documents as trees that can be wrong: what JSON has, keys that stand twice, and words as written.

A mapping is `Pairs`, so that a key may stand twice or be no text; a `Raw` is written as it is. What
`write` makes is JSON and, since YAML's flow style is nearly that, YAML.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

Tree = Any


class Raw(str):
    """A scalar as it is written."""

    __slots__ = ()


class Pairs(list[list[Any]]):
    """A mapping, as lists of a key and its value."""


Place = tuple[list[Any], int]  # a list and an index of it: of an item, or of a pair's key or value


def read_json(text: str | bytes) -> Tree:
    """The tree of a JSON text."""
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def read_yaml(text: str | bytes) -> Tree:
    """The tree of a YAML text."""
    return as_tree(yaml.safe_load(text))


def as_tree(value: Any) -> Tree:
    """The tree of plain values."""
    if isinstance(value, dict):
        return Pairs([key, as_tree(inner)] for key, inner in value.items())
    return [as_tree(inner) for inner in value] if isinstance(value, list | tuple) else value


def write(tree: Tree) -> str:
    """The text of a tree."""
    if isinstance(tree, Raw):
        return tree
    if isinstance(tree, Pairs):
        return "{" + ", ".join(f"{_key(key)}: {write(value)}" for key, value in tree) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(write, tree)) + "]"
    try:
        return json.dumps(tree)
    except (TypeError, ValueError):  # dates of YAML, numbers of thousands of digits
        return json.dumps(str(type(tree)))


def write_bytes(tree: Tree) -> bytes:
    """The bytes of a tree."""
    return write(tree).encode("utf-8", "surrogatepass")


def _key(key: Any) -> str:
    """A key is a text, unless it is written raw: others are no JSON."""
    return key if isinstance(key, Raw) else json.dumps(str(key))


def places(tree: Tree) -> list[Place]:
    """Every value inside a tree, and every key."""
    return list(_places(tree))


def _places(tree: Tree) -> Iterator[Place]:
    if isinstance(tree, Pairs):
        for pair in tree:
            yield pair, 0
            yield pair, 1
            yield from _places(pair[1])
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield tree, index
            yield from _places(value)
