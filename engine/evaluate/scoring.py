"""Log-likelihoods of continuations on a configured engine.

Letters: S tokens of a chunk, V vocabulary.

Requests with the same input run once. Several inputs go through the model together as
micro-batches, so that they share expert loads; logits are consumed chunk by chunk, within a byte
budget, and never held for a whole batch. The last chunks are padded at their end to few distinct
lengths, which changes no earlier position and keeps native kernel caches small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from engine.experts.kernels import padded_length
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch

LOGIT_BYTES = 16_000_000
MAX_TOGETHER = 16


@dataclass(frozen=True)
class Continuation:
    """Score `target` after `context`; both are token ids, neither empty."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def input(self) -> tuple[int, ...]:
        """What the model reads: all but the last token."""
        return self.context + self.target[:-1]


@dataclass
class Score:
    """Sum of log-probabilities (nats), and whether greedy decoding would give the target."""

    log_likelihood: float = 0.0
    greedy: bool = True


@dataclass
class _Job:
    """One distinct input with all the targets that are read off it."""

    tokens: tuple[int, ...]
    members: list[tuple[int, Continuation]] = field(default_factory=list)
    done: int = 0
    end: int = 0
    padding: int = 0

    @property
    def first_scored(self) -> int:
        """The first position whose logits are needed."""
        return min(len(continuation.context) for _, continuation in self.members) - 1


def score(
    engine: Engine,
    continuations: Sequence[Continuation],
    on_done: Callable[[int], None] | None = None,
) -> list[Score]:
    """Scores in the order given. on_done: told how many requests were just finished."""
    scores = [Score() for _ in continuations]
    jobs: dict[tuple[int, ...], _Job] = {}
    for number, continuation in enumerate(continuations):
        job = jobs.setdefault(continuation.input, _Job(continuation.input))
        job.members.append((number, continuation))
    ordered = sorted(jobs.values(), key=lambda job: -len(job.tokens))
    for group in _groups(engine, ordered):
        _score_group(engine, group, scores)
        if on_done is not None:
            on_done(sum(len(job.members) for job in group))
    return scores


def scored_chunk(engine: Engine, length: int) -> int:
    """Tokens of a chunk of a text this long, all of whose logits are wanted.

    Whole texts stay whole where the model cannot continue a chunk.
    """
    share = max(1, LOGIT_BYTES // (8 * engine.facts.vocabulary))
    chunk = engine.chunk_tokens(length)
    return chunk if chunk == length else min(chunk, share)


def _groups(engine: Engine, jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Neighbours in length that fit what the memory plan counts: KV, and activations of a chunk."""
    assert engine.config is not None
    config = engine.config
    room = config.kv.max_tokens * config.batch.count * config.batch.size
    joint = config.prefill.chunk_tokens * config.batch.size * max(1, config.batch.count // 2)
    groups: list[list[_Job]] = []
    used = chunks = 0
    for job in jobs:
        length = padded_length(len(job.tokens))
        chunk = min(length, engine.chunk_tokens(length))
        fits = used + length <= room and chunks + chunk <= joint
        if not groups or not fits or len(groups[-1]) == MAX_TOGETHER:
            groups.append([])
            used = chunks = 0
        groups[-1].append(job)
        used += length
        chunks += chunk
    return groups


def _score_group(engine: Engine, group: Sequence[_Job], scores: list[Score]) -> None:
    longest = max(len(job.tokens) for job in group)
    chunk = scored_chunk(engine, longest)
    batches = [MicroBatch(torch.empty(1, 0, dtype=torch.long)) for _ in group]
    running = list(zip(group, batches, strict=True))
    while running:
        for job, batch in running:
            piece = job.tokens[job.done : job.done + chunk]
            job.end = job.done + len(piece)
            last = job.end == len(job.tokens)  # padding must not stand between two chunks
            job.padding = padded_length(len(piece)) - len(piece) if last else 0
            batch.tokens = torch.tensor([[*piece, *[piece[-1]] * job.padding]])
            batch.keep = max(1, min(len(piece), job.end - job.first_scored)) + job.padding
        jobs = [job for job, _ in running]

        def consume(number: int, logits: torch.Tensor, jobs: list[_Job] = jobs) -> None:
            job = jobs[number]
            _read_scores(job, logits[0, : logits.shape[1] - job.padding], scores)

        engine.forward([batch for _, batch in running], "prefill", consume)
        for job in jobs:
            job.done = job.end
        running = [(job, batch) for job, batch in running if job.done < len(job.tokens)]


def _read_scores(job: _Job, logits: torch.Tensor, scores: list[Score]) -> None:
    """logits: [keep, V], of the last positions before job.end."""
    keep = logits.shape[0]
    first = job.end - keep
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)  # [keep, V]
    best = log_probabilities.argmax(dim=-1)  # [keep]
    for number, continuation in job.members:
        start = max(first, len(continuation.context) - 1)
        stop = min(job.end, len(continuation.context) + len(continuation.target) - 1)
        if start >= stop:
            continue
        offset = len(continuation.context) - 1
        targets = torch.tensor(
            continuation.target[start - offset : stop - offset], device=logits.device
        )
        rows = slice(start - first, stop - first)
        gathered = log_probabilities[rows].gather(1, targets[:, None])
        scores[number].log_likelihood += float(gathered.sum())
        scores[number].greedy &= bool((best[rows] == targets).all())
