"""Target: a reader of what others wrote, with inputs that it takes and a way to make wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.documents import Tree
from tests.fuzz.mutations import damaged, edited, swept
from tests.fuzz.oracle import CPU_S, Arena, Run, hold

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Shape:
    """How inputs are trees. read: of a right input; write: of any tree; extra: scalars that only
    this format has."""

    read: Callable[[bytes], Tree]
    write: Callable[[Tree], bytes]
    extra: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Target:
    """A reader under test.

    open: gives the function that takes an input, for an arena; seeds: right inputs; shape: None for
    bytes without structure; allowed: errors beside the project's own that it may raise; cases: how
    many a short run makes; own: a strategy beside the common ones; most_s: seconds of the processor
    for one input.
    """

    name: str
    open: Callable[[Arena], AbstractContextManager[Run]]
    seeds: Callable[[], Sequence[bytes]]
    shape: Shape | None = None
    allowed: tuple[type[Exception], ...] = ()
    cases: int = 60
    own: Callable[[], st.SearchStrategy[bytes]] | None = None
    most_s: float = CPU_S

    @property
    def corpus(self) -> list[Path]:
        """Kept inputs: right ones, and those that once failed."""
        return sorted(path for path in (CORPUS / self.name).glob("*") if path.is_file())

    def hold(self, place: Arena, run: Run, data: bytes) -> None:
        """Hold the oracle to an input, which stands beside whatever it raises. run: of `open`."""
        try:
            hold(place, run, data, self.allowed, self.most_s)
        except BaseException as error:
            error.add_note(f"{self.name}: {data!r:.3000}")
            raise

    def sweep(self) -> Iterator[bytes]:
        """Every place of every seed with every odd scalar, in a random order."""
        if self.shape is not None:
            trees = [self.shape.read(seed) for seed in self.seeds()]
            yield from map(self.shape.write, swept(trees, self.shape.extra))

    def inputs(self) -> st.SearchStrategy[bytes]:
        """Wrong inputs made of the seeds and the corpus, and some made of nothing."""
        known = [*self.seeds(), *(path.read_bytes() for path in self.corpus)]
        ways = [damaged(known), st.binary(max_size=200)]
        if self.shape is not None:
            shape = self.shape
            trees = [shape.read(seed) for seed in self.seeds()]
            made = edited(trees, shape.extra).map(shape.write)
            ways = [made, made, made, *ways]
        if self.own is not None:
            ways = [self.own()] * 3 + ways
        return st.one_of(ways)
