"""Finds how much memory a target speed needs, by replay.

In: a trace, timings, a target. Out: for each precision the smallest budget whose predicted speed
reaches it, and its range if the prediction errs by ERROR_RATIO either way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.errors import EngineError, InfeasibleError
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings
from engine.memory import plan
from engine.replay.simulate import replay
from engine.trace.trace import Trace

# The replay errs by 3 to 5 % on average and by at most 19 % on configs that it never saw
# (docs/lab/); this is the required mean.
ERROR_RATIO = 0.10
STEPS = 64  # resolution: distinct fractions of the experts
METRIC = "output_tps"


@dataclass(frozen=True)
class BudgetAnswer:
    """What one precision needs for the target.

    smallest_bytes: None if even all experts resident are too slow; low_bytes, high_bytes: if the
    prediction is too low, or too high, by ERROR_RATIO (high_bytes None: then no budget would do);
    fraction: of the experts, resident at smallest_bytes; fastest_tps: with all resident.
    """

    bits: int
    smallest_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    fraction: float | None
    predicted_tps: float | None
    fastest_tps: float | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict; all figures are predictions."""
        return asdict(self)


def kept_traces(cache_folder: Path, fingerprint: str) -> list[Path]:
    """The traces of a model's generation in the cache folder, the newest first."""
    found = [
        path
        for path in (cache_folder / "traces").glob(f"{fingerprint}-*.npz")
        if not path.stem.endswith("-scored")  # prompts only, nothing is decoded
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def budget_for(
    target_tps: float,
    bits: int,
    base: EngineConfig,
    facts: ModelFacts,
    trace: Trace,
    timings: ModelTimings,
    warm: Sequence[int] = (),
) -> BudgetAnswer:
    """Finds the smallest budget for target_tps generated tokens/s at these bits.

    base: all other settings; warm: numbers of the passes that come first and are not counted.
    """
    counted = set(range(len(trace.passes))) - set(warm)

    def config(step: int) -> EngineConfig:
        fraction = f"{100 * step / STEPS:g}%"
        return base.overlay({"precision.bits": bits, "cache.expert_bytes": fraction})

    @functools.cache
    def speed(step: int) -> float:
        try:
            found = replay(config(step), facts, trace, timings, warm=warm)
        except InfeasibleError:  # too few slots for a layer's demand
            return 0.0
        return found.metrics(counted)[METRIC]

    def needed(target: float) -> int | None:
        step = smallest_step(lambda step: speed(step) >= target)
        return None if step is None else _bytes(config(step), facts)

    try:
        step = smallest_step(lambda step: speed(step) >= target_tps)
        return BudgetAnswer(
            bits,
            None if step is None else _bytes(config(step), facts),
            needed(target_tps / (1 + ERROR_RATIO)),
            needed(target_tps / (1 - ERROR_RATIO)),
            None if step is None else step / STEPS,
            None if step is None else speed(step),
            speed(STEPS),
        )
    except EngineError as error:
        return BudgetAnswer(bits, None, None, None, None, None, None, str(error))


def smallest_step(enough: Callable[[int], bool]) -> int | None:
    """The smallest of 1..STEPS that is enough, by bisection, assuming that more memory is never
    slower. None if STEPS is not enough."""
    if not enough(STEPS):
        return None
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _bytes(config: EngineConfig, facts: ModelFacts) -> int:
    return plan.resolve(config, facts)[1].total_bytes
