"""YAML's safe part with unique keys, and with bounds on nesting and on what aliases repeat."""

from __future__ import annotations

from typing import Any

import yaml

from engine.files import UniqueKeys
from engine.inputs.bounds import MOST_DEPTH

MOST_YAML_BYTES = 32 << 20  # a deployment carries its prompts
MOST_NODES = 100_000  # keys and values; a study of 1,000 prompts has some 3,000
MOST_WHOLE = 1 << 63
MOST_REPEATED = 1_000_000  # nodes and characters: ten aliases of ten, nine times, are 10^9


class BoundedYaml(UniqueKeys):
    """A loader for files that others wrote.

    Raises yaml.YAMLError with a line for what is nested more than MOST_DEPTH deep, has more than
    MOST_NODES keys and values, repeats more than MOST_REPEATED behind aliases, has an alias inside
    its own anchor, a number of more than 64 bits, or a value that its tag does not allow.
    """

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._depth = 0
        self._seen = 0  # nodes and characters so far, those behind aliases counted again
        self._repeated = 0
        self._sizes: dict[int, int] = {}  # of finished nodes, by id

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, counted."""
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        before = self._seen
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _refused(f"it is nested more than {MOST_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not alias:
            if len(self._sizes) >= MOST_NODES:
                raise _refused(f"it has more than {MOST_NODES} keys and values", mark)
            self._seen += 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
            self._sizes[id(node)] = self._seen - before
            return node
        if id(node) not in self._sizes:
            raise _refused("an alias stands inside its own anchor", mark)
        self._seen += self._sizes[id(node)]
        self._repeated += self._sizes[id(node)]
        if self._repeated > MOST_REPEATED:
            raise _refused("its aliases repeat too much: write the values out", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node. PyYAML itself lets `!!bool x` and `!!int ""` fail as KeyError and
        IndexError, and reads numbers that no float and no database holds."""
        try:
            found = super().construct_object(node, deep)
        except (LookupError, ValueError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            shown = str(node.value)[:40]
            raise _refused(f"'{shown}' cannot be read as {kind}", node.start_mark) from None
        if isinstance(found, int) and not -MOST_WHOLE <= found < MOST_WHOLE:
            raise _refused("a whole number has more than 64 bits", node.start_mark)
        return found


def _refused(problem: str, mark: yaml.Mark) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, mark)
