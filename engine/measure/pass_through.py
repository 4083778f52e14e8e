"""One repeat of a workload on a configured engine: prompts through prefill, then timed decoding.

Continuation tokens come from the workload's own text (teacher-forced) or from seeded sampling; EOS
is ignored, so that every repeat generates the same number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.sampling import Sampler, SamplingOptions
from engine.run.time_split import Activity


@dataclass(frozen=True)
class Sequenced:
    """One sequence as token ids; forced is empty if tokens are to be sampled."""

    prompt: tuple[int, ...]
    forced: tuple[int, ...]


@dataclass
class GroupTiming:
    """Clock readings of one group of sequences that ran together, in seconds.

    activities, *_bytes: of the decode part, prefill_*: of the prompts; disk_bytes leaves out what
    the host tier held. failed: the logits became NaN, so that nothing was generated.
    """

    sequences: int
    prompt_tokens: int
    ttft_s: float
    gaps_s: list[float] = field(default_factory=list)
    activities: dict[Activity, float] = field(default_factory=dict)
    prefill_activities: dict[Activity, float] = field(default_factory=dict)
    prefill_transferred_bytes: int = 0
    transferred_bytes: int = 0
    disk_bytes: int = 0
    failed: bool = False

    @property
    def decode_s(self) -> float:
        """Seconds from the first token to the last."""
        return sum(self.gaps_s)


def run_pass(
    engine: Engine, sequences: Sequence[Sequenced], output_tokens: int, seed: int
) -> list[GroupTiming]:
    """Run all sequences in groups of batch.count x batch.size."""
    assert engine.config is not None
    count, size = engine.config.batch.count, engine.config.batch.size
    step = count * size
    return [
        _run_group(engine, sequences[start : start + step], size, output_tokens, seed + start)
        for start in range(0, len(sequences), step)
    ]


def _run_group(
    engine: Engine, group: Sequence[Sequenced], size: int, output_tokens: int, seed: int
) -> GroupTiming:
    length = min(len(sequence.prompt) for sequence in group)
    members = [group[start : start + size] for start in range(0, len(group), size)]
    batches = [
        MicroBatch(torch.tensor([sequence.prompt[-length:] for sequence in member]))
        for member in members
    ]
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
    engine.device.synchronize()
    asked = engine.transfers.counters.moved_bytes
    engine.clock.reset()
    started = time.perf_counter()
    logits = engine.prefill(batches)
    if _has_nan(logits):
        return GroupTiming(len(group), length * len(group), 0.0, failed=True)
    forced = all(len(sequence.forced) >= output_tokens for sequence in group)
    tokens = [_next(m, rows, 0, sampler) for m, rows in zip(members, logits, strict=True)]
    engine.device.synchronize()
    previous = time.perf_counter()
    timing = GroupTiming(len(group), length * len(group), previous - started)
    engine.clock.switch("other")
    timing.prefill_activities = dict(engine.clock.seconds)
    moved, read = engine.transfers.counters.moved_bytes, engine.live.disk_bytes
    timing.prefill_transferred_bytes = moved - asked
    engine.clock.reset()
    for number in range(1, output_tokens):
        for batch, chosen in zip(batches, tokens, strict=True):
            batch.tokens = chosen[:, None]
        logits = engine.forward(batches, "decode")
        if not forced and _has_nan(logits):
            break  # nothing can be sampled from NaN logits
        tokens = [_next(m, rows, number, sampler) for m, rows in zip(members, logits, strict=True)]
        engine.device.synchronize()
        now = time.perf_counter()
        timing.gaps_s.append(now - previous)
        previous = now
    engine.clock.switch("other")
    timing.activities = dict(engine.clock.seconds)
    timing.transferred_bytes = engine.transfers.counters.moved_bytes - moved
    timing.disk_bytes = engine.live.disk_bytes - read
    timing.failed = _has_nan(logits)
    return timing


def _has_nan(logits: Sequence[torch.Tensor]) -> bool:
    return any(bool(rows[:, -1].isnan().any()) for rows in logits)


def _next(
    member: Sequence[Sequenced], logits: torch.Tensor, number: int, sampler: Sampler
) -> torch.Tensor:
    """Next token ids [B]: forced ones, or sampled from logits [B, 1, V]."""
    if all(number < len(sequence.forced) for sequence in member):
        return torch.tensor([sequence.forced[number] for sequence in member])
    return sampler(logits[:, -1])
