"""Periodic telemetry of a server: one JSON-ready dict for each time window.

It contains no text and no token ids.
"""

from __future__ import annotations

import time
from typing import Any

from engine.device import process_memory
from engine.serve.batching.metrics import Meters, Totals
from engine.serve.batching.scheduler import EngineLoop


class Telemetry:
    """Cuts the meters' sums into windows."""

    def __init__(self, engine: EngineLoop, meters: Meters) -> None:
        self._engine = engine
        self._meters = meters
        self._before = Totals()
        self._since_s = time.monotonic()

    def window(self) -> dict[str, Any]:
        """The window since the last call. A metric without any events is None."""
        totals, now_s = self._meters.totals.copy(), time.monotonic()
        part, seconds = totals.since(self._before), now_s - self._since_s
        self._before, self._since_s = totals, now_s
        return {
            "seconds": round(seconds, 3),
            "sequences": {
                "finished": part.finished,
                "failed": part.failed,
                "cancelled": part.cancelled,
                "running": self._engine.running,
                "waiting": self._engine.waiting,
            },
            "prompt_tokens": part.prompt_tokens,
            "cached_tokens": part.cached_tokens,
            "output_tokens": part.output_tokens,
            "response_cache_hit_rate": part.answer_hit_rate,
            "expert_hit_rate": part.hit_rate,
            "expert_hit_rate.prefill": part.prefill_hit_rate,
            "stall_ms_per_token": _ms(part.stall_s, part.decode_tokens),
            "ttft_ms": _ms(part.ttft_s, part.ttft_count),
            "tpot_ms": _ms(part.tpot_s, part.tpot_count),
            "rss_bytes": process_memory.resident_bytes(),
            "routing": self._meters.routing.counts.take(),
        }


def _ms(seconds: float, count: int) -> float | None:
    return seconds * 1e3 / count if count else None
