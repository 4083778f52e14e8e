"""Adaptive replacement: recency and frequency share the slots, ghost hits move the target."""

from __future__ import annotations

from collections.abc import Collection

from engine.policy.context import PolicyContext
from engine.policy.options import choice
from engine.types import ExpertId

_List = dict[ExpertId, None]  # in order of use, the least recent first


class ArcEviction:
    """ARC (Megiddo and Modha, FAST 2003), one for each pool.

    T1 holds residents used once, T2 those used again, B1 and B2 the ghosts of experts that left
    them. A miss found in B1 raises p, the target size of T1; one found in B2 lowers it. The
    capacity is the largest number of residents seen, because no victim is requested before the
    slots are full.

    coarse: as in the code of Fate's authors (arXiv 2502.12224), p moves by the length of T1 (up) or
    T2 (down), at most the capacity, not by the ratio of the ghost lists.
    """

    keeps = True
    expects = False

    def __init__(self, *, coarse: bool = False) -> None:
        self._coarse = coarse
        self._t1: _List = {}
        self._t2: _List = {}
        self._b1: _List = {}
        self._b2: _List = {}
        self._capacity = 0
        self._p = 0.0
        self._adapted: ExpertId | None = None

    @property
    def target(self) -> float:
        """p: the target size of T1 in slots."""
        return self._p

    def begin_sequences(self) -> None:
        """Does nothing: the lists outlive sequences."""

    def begin_layer(self, layer: int) -> None:
        """Does nothing: layers do not matter."""

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Move the expert to the recent end of T2."""
        self._t1.pop(expert, None)
        self._t2.pop(expert, None)
        self._t2[expert] = None

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Insert into T2 if a ghost remembers the expert, else into T1; drops ghosts beyond the
        capacity."""
        if expert in self._b1 or expert in self._b2:
            self._adapt(expert)
            self._b1.pop(expert, None)
            self._b2.pop(expert, None)
            self._t2[expert] = None
        else:
            self._t1[expert] = None
        self._adapted = None
        self._capacity = max(self._capacity, len(self._t1) + len(self._t2))
        while self._b1 and len(self._t1) + len(self._b1) > self._capacity:
            del self._b1[next(iter(self._b1))]
        known = len(self._t1) + len(self._t2) + len(self._b1) + len(self._b2)
        while self._b2 and known > 2 * self._capacity:
            del self._b2[next(iter(self._b2))]
            known -= 1

    def expect(self, expert: ExpertId, score: float) -> None:
        """Never called."""

    def forget(self, expert: ExpertId) -> None:
        """Move the expert to the ghost list of the list that it leaves."""
        if expert in self._t1:
            del self._t1[expert]
            self._b1[expert] = None
        elif expert in self._t2:
            del self._t2[expert]
            self._b2[expert] = None

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """ARC's REPLACE: the least recent candidate of the list that is over its target, else of
        the other."""
        self._adapt(incoming)
        first = len(self._t1)
        over = first > self._p or (first == self._p and incoming in self._b2)
        allowed = set(candidates)
        for entries in (self._t1, self._t2) if over else (self._t2, self._t1):
            for expert in entries:
                if expert in allowed:
                    return expert
        raise AssertionError("a candidate is not resident")

    def _adapt(self, incoming: ExpertId) -> None:
        """Adapt p to a returning ghost, once."""
        if self._adapted == incoming:
            return
        b1, b2 = len(self._b1), len(self._b2)
        if incoming in self._b1:
            step = len(self._t1) if self._coarse else max(1.0, b2 / b1)
            self._p = min(float(self._capacity), self._p + step)
        elif incoming in self._b2:
            step = len(self._t2) if self._coarse else max(1.0, b1 / b2)
            self._p = max(0.0, self._p - step)
        else:
            return
        self._adapted = incoming


def build(context: PolicyContext) -> ArcEviction:
    """The factory of engine.config.choices."""
    options = context.config.cache.options
    step = choice(options, "cache.options.arc_step", ("textbook", "coarse"))
    return ArcEviction(coarse=step == "coarse")
