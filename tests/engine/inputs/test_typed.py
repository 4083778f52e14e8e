"""Fields hold what they are annotated with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import pytest

from engine.inputs.typed import check_types


class Pair(NamedTuple):
    rows: int
    columns: int


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...]


@dataclass(frozen=True)
class Outer:
    count: int
    rate: float
    kind: Literal["a", "b"]
    inner: Inner | None
    pairs: tuple[Pair, ...]
    curve: Mapping[int, float]
    either: int | str
    anything: Any = None


RIGHT = Outer(1, 2.5, "a", Inner(("x",)), (Pair(1, 2),), {1: 0.5}, "auto")


@pytest.mark.parametrize("changes", [{}, {"rate": 3}, {"inner": None}, {"either": 5}])
def test_right_values_pass(changes: dict[str, Any]) -> None:
    check_types(replace(RIGHT, **changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"count": True}, "count is True, not a whole number"),
        ({"count": 1.0}, r"count is 1\.0, not a whole number"),
        ({"count": 1 << 70}, "count is .*, not a whole number"),
        ({"rate": "fast"}, "rate is 'fast', not a number"),
        ({"kind": ["a"]}, "kind is .*, not one of a, b"),
        ({"inner": {"names": ()}}, "inner is .*, not a mapping"),
        ({"inner": Inner((1,))}, r"inner\.names\.0 is 1, not str"),  # type: ignore[arg-type]
        ({"pairs": 5}, "pairs is 5, not a list"),
        ({"pairs": (Pair(1, None),)}, r"pairs\.0\.columns is None"),  # type: ignore[arg-type]
        ({"curve": {"1": 0.5}}, "a key of curve is '1', not a whole number"),
        ({"curve": {1: None}}, r"curve\.1 is None, not a number"),
        ({"either": 0.5}, r"either is 0\.5, not a whole number"),
    ],
)
def test_others_are_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_types(replace(RIGHT, **changes))
