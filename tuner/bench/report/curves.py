"""Speed against cache fraction: rows of one policy that differ in `cache.expert_bytes` alone.

Fractions are those given by `--set cache.expert_bytes=10%,25%,...`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.contract.report import Metric

FRACTION_PATH = "cache.expert_bytes"


@dataclass(frozen=True)
class CurvePoint:
    """The decode speed (tokens/s) at one fraction of all expert bytes."""

    percent: float
    speed: Metric


@dataclass(frozen=True)
class Curve:
    """One policy (or setting), by ascending fraction."""

    name: str
    points: tuple[CurvePoint, ...]


def cache_curves(document: Mapping[str, Any]) -> list[Curve]:
    """Returns the curves that have at least two points."""
    found: dict[str, list[CurvePoint]] = defaultdict(list)
    for row in document["rows"]:
        fraction = str(row["settings"].get(FRACTION_PATH, ""))
        speed = row["metrics"].get("decode_tps")
        if fraction.endswith("%") and speed is not None:
            found[_name(row)].append(CurvePoint(float(fraction[:-1]), Metric(**speed)))
    return [
        Curve(name, tuple(sorted(points, key=lambda point: point.percent)))
        for name, points in found.items()
        if len(points) > 1
    ]


def _name(row: Mapping[str, Any]) -> str:
    """The row's name without its fraction."""
    words = str(row["name"]).split(" ")
    return " ".join(word for word in words if not word.startswith(f"{FRACTION_PATH}=")) or "default"
