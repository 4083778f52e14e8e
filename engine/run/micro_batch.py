"""Micro-batches as greenlets: each runs the model's own forward, the hub computes their experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import greenlet
import torch

from engine.run.experts_runtime import ExpertsCall, ExpertsRuntime
from engine.run.phase_clock import PhaseClock


@dataclass
class MicroBatch:
    """Sequences of equal length that go through the model together.

    tokens: the next input [B, S]; kv: transformers' cache, made by the model at its first forward.
    """

    tokens: torch.Tensor
    kv: Any = None
    position: int = 0


def forward_together(
    model: Any,
    batches: Sequence[MicroBatch],
    runtime: ExpertsRuntime,
    clock: PhaseClock,
    logits_to_keep: int = 1,
) -> list[torch.Tensor]:
    """One forward of every micro-batch, sharing each expert load.

    Returns the logits of the last `logits_to_keep` positions of each (0: all), [B, S', V].
    """
    workers = [
        greenlet.greenlet(_forward(model, batch, clock, logits_to_keep)) for batch in batches
    ]
    results: list[Any] = [worker.switch() for worker in workers]
    while any(isinstance(result, ExpertsCall) for result in results):
        assert all(isinstance(result, ExpertsCall) for result in results), "micro-batches diverged"
        outputs = runtime.compute(results)
        results = [worker.switch(output) for worker, output in zip(workers, outputs, strict=True)]
    return results


def _forward(
    model: Any, batch: MicroBatch, clock: PhaseClock, logits_to_keep: int
) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        clock.switch("dense")
        output = model(
            input_ids=batch.tokens,
            cache=batch.kv,
            use_cache=True,
            logits_to_keep=logits_to_keep,
        )
        batch.kv = output.cache
        batch.position += batch.tokens.shape[1]
        clock.switch("other")
        logits: torch.Tensor = output.logits
        return logits

    return run
