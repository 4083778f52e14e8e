"""Whether what a deployment serves still is what its config was tuned for.

In: a window of telemetry, what the canary saw and the file recorded. Out: a Drift, whose `retune`
the dashboard shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.trace.fingerprint import Fingerprint, distance

ROUTING_LIMIT = 0.15
HIT_RATE_LIMIT = 0.10
LEAST_TOKENS = 256  # fewer say little of where routers send a text


@dataclass(frozen=True)
class Reference:
    """What is compared with. routing: of the workload's text, as the canary saw it; hit_rate: of
    decoding, as the file records it. None: not known."""

    routing: Fingerprint | None
    hit_rate: float | None


@dataclass(frozen=True)
class Drift:
    """routing: how unlike the workload's text is to what was served, 0 to 1; hit_rate: by how much
    fewer look-ups hit than recorded. None: not known, or of too few tokens."""

    routing: float | None
    hit_rate: float | None

    @property
    def retune(self) -> bool:
        """Whether another config would probably do better now."""
        far = self.routing is not None and self.routing > ROUTING_LIMIT
        return far or (self.hit_rate is not None and self.hit_rate > HIT_RATE_LIMIT)

    def to_json(self) -> dict[str, Any]:
        """As it is kept in a window's payload."""
        return {"routing": self.routing, "hit_rate": self.hit_rate, "retune": self.retune}


def find_drift(window: Mapping[str, Any], reference: Reference) -> Drift:
    """Of one window of telemetry (engine.serve.telemetry)."""
    if window["prompt_tokens"] + window["output_tokens"] < LEAST_TOKENS:
        return Drift(None, None)
    routing, hit_rate = window.get("routing"), window.get("expert_hit_rate")
    return Drift(
        distance(routing, reference.routing) if routing and reference.routing else None,
        reference.hit_rate - hit_rate
        if reference.hit_rate is not None and hit_rate is not None
        else None,
    )
