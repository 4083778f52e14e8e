"""The points that a search may propose: resolved, deduplicated, with their axes."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from tuner.quality.key import quality_group
from tuner.search.posterior import Axis
from tuner.search.space import CACHE, Choice, Parameter, Point, SearchSpace

# A larger space is sampled; the rest is left to the fallback sampler.
MOST = 2000


@dataclass(frozen=True)
class Candidate:
    """A point that fits. config: resolved; fraction: of the experts that its slots hold; group:
    equal for candidates of equal quality."""

    point: Point
    config: EngineConfig
    fraction: float
    group: str


class Candidates:
    """All candidates of a space. `index_of` also finds points that resolve to the same config."""

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        self.items: list[Candidate] = []
        self._by_point: dict[str, int] = {}
        by_digest: dict[str, int] = {}
        experts = space.facts.moe_layers * space.facts.experts
        for point in _points(space, seed):
            try:
                config, plan = space.resolve(point)
            except InfeasibleError:
                continue
            index = by_digest.setdefault(config.digest(), len(self.items))
            if index == len(self.items):
                fraction = plan.resident_fraction(experts)
                self.items.append(Candidate(point, config, fraction, quality_group(config)))
            self._by_point[_key(point)] = index

    def __len__(self) -> int:
        return len(self.items)

    def index_of(self, point: Point) -> int | None:
        """The index of the candidate for this point; None if there is none."""
        return self._by_point.get(_key(point))

    def axes(self) -> list[Axis]:
        """One axis per parameter that varies."""
        return [
            self._axis(parameter)
            for parameter in self.space.parameters
            if len(parameter.choices) > 1
        ]

    def _axis(self, parameter: Parameter) -> Axis:
        if parameter.name == CACHE:  # `auto` lies where it resolves to
            return Axis(np.array([item.fraction for item in self.items]), ordered=True)
        ranks = {_text(choice): rank for rank, choice in enumerate(_sorted(parameter.choices))}
        scale = max(1, len(ranks) - 1)
        found = [ranks[_text(item.point[parameter.name])] / scale for item in self.items]
        ordered = all(isinstance(c, int | float) for c in parameter.choices)
        return Axis(np.array(found), ordered)


def _points(space: SearchSpace, seed: int) -> Iterator[dict[str, Choice]]:
    names = [parameter.name for parameter in space.parameters]
    choices = [parameter.choices for parameter in space.parameters]
    if space.size <= MOST:
        for values in itertools.product(*choices):
            yield dict(zip(names, values, strict=True))
        return
    yield space.default()
    rng = random.Random(seed)
    for _ in range(MOST - 1):
        yield {name: rng.choice(own) for name, own in zip(names, choices, strict=True)}


def _sorted(choices: tuple[Choice, ...]) -> list[Choice]:
    numbers = all(isinstance(choice, int | float) for choice in choices)
    return sorted(choices, key=float) if numbers else list(choices)


def _text(choice: Choice) -> str:
    return json.dumps(choice)


def _key(point: Point) -> str:
    return json.dumps(dict(point), sort_keys=True)
