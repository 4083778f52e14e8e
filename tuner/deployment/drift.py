"""Detects drift: whether a deployment's traffic still matches what its config was tuned for.

In: a window of telemetry, the canary's routing and the file's figures. Out: a Drift, whose `retune`
the dashboard shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.trace.fingerprint import Fingerprint, distance

ROUTING_LIMIT = 0.15
HIT_RATE_LIMIT = 0.10
LEAST_TOKENS = 256  # fewer say little about the routing of a text


@dataclass(frozen=True)
class Reference:
    """The reference for drift. routing: of the workload's text, from the canary; hit_rate: of
    decoding, as recorded in the file. None: not known."""

    routing: Fingerprint | None
    hit_rate: float | None


@dataclass(frozen=True)
class Drift:
    """The drift of one window. routing: distance between the served text's routing and the
    workload's, 0 to 1; hit_rate: recorded hit rate minus the present one. None: not known, or of
    too few tokens."""

    routing: float | None
    hit_rate: float | None

    @property
    def retune(self) -> bool:
        """Whether another config would probably do better now."""
        far = self.routing is not None and self.routing > ROUTING_LIMIT
        return far or (self.hit_rate is not None and self.hit_rate > HIT_RATE_LIMIT)

    def to_json(self) -> dict[str, Any]:
        """The drift as stored in a window's payload."""
        return {"routing": self.routing, "hit_rate": self.hit_rate, "retune": self.retune}


def find_drift(window: Mapping[str, Any], reference: Reference) -> Drift:
    """Computes the drift of one window of telemetry (engine.serve.telemetry)."""
    if window["prompt_tokens"] + window["output_tokens"] < LEAST_TOKENS:
        return Drift(None, None)
    routing, hit_rate = window.get("routing"), window.get("expert_hit_rate")
    return Drift(
        distance(routing, reference.routing) if routing and reference.routing else None,
        reference.hit_rate - hit_rate
        if reference.hit_rate is not None and hit_rate is not None
        else None,
    )
