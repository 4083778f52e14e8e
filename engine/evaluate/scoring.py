"""Log-likelihoods of continuations on a configured engine.

Letters: S tokens of a chunk, V vocabulary.

Requests with the same input run once. If outputs do not depend on which experts are resident, whole
inputs pass layer by layer, as many together as memory for their hidden states allows, so that each
expert is read once for all of them. Otherwise, and if the memory or the model does not allow that,
several inputs go through the ordinary loop as micro-batches: in chunks, and if kv.keep_fraction is
below 1 token by token after the context, as in generation, because only a token after merged keys
and values sees what merging loses. Logits are consumed piece by piece, within a byte budget. Inputs
are padded at their end to few distinct lengths, which changes no earlier position and keeps native
kernel caches small.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.config.exactness import ON_MISS
from engine.errors import InfeasibleError
from engine.evaluate.routes import RouteRecorder
from engine.experts.kernels.gemm import padded_length
from engine.run.engine import LOGIT_BYTES, Engine
from engine.run.layer_by_layer import TextBatch, UnknownHeadError
from engine.run.micro_batch import MicroBatch

MAX_TOGETHER = 16

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Observer:
    """Reads the model's output along one text while that is scored among others.

    tokens: the text's first tokens; read: called with the first position and the log-probabilities
    [n, V] of each piece of the text.
    """

    tokens: tuple[int, ...]
    read: Callable[[int, torch.Tensor], None]


OnScored = Callable[[Mapping[int, Score]], None]
"""Called with the scores of each finished group, by index of the request."""


@dataclass
class _Job:
    """One distinct input with all the targets that are scored on it."""

    tokens: tuple[int, ...]
    members: list[tuple[int, Continuation]] = field(default_factory=list)
    done: int = 0
    end: int = 0
    padding: int = 0
    observer: Observer | None = None

    @property
    def first_scored(self) -> int:
        """The first position whose logits are needed."""
        return min(len(continuation.context) for _, continuation in self.members) - 1

    def next_end(self, chunk: int, stepwise: bool) -> int:
        """The end of the next piece: of at most `chunk` tokens; stepwise: of one token after the
        shortest context."""
        context = self.first_scored + 1 if stepwise else len(self.tokens)
        return min(self.done + chunk, context) if self.done < context else self.done + 1


def score(
    engine: Engine,
    continuations: Sequence[Continuation],
    on_scored: OnScored | None = None,
    *,
    observer: Observer | None = None,
    routes: RouteRecorder | None = None,
) -> list[Score]:
    """Scores in the order given.

    observer: reads the first text that begins with its tokens and is scored from its first token;
    routes: records the routing of texts that pass layer by layer.
    """
    scores = [Score() for _ in continuations]
    jobs: dict[tuple[int, ...], _Job] = {}
    for number, continuation in enumerate(continuations):
        job = jobs.setdefault(continuation.input, _Job(continuation.input))
        job.members.append((number, continuation))
    if observer is not None:
        _observe(jobs.values(), observer)
    ordered = sorted(jobs.values(), key=lambda job: -len(job.tokens))
    rest = _score_layer_wise(engine, ordered, scores, on_scored, routes)
    for group in _groups(engine, rest):
        _score_group(engine, group, scores)
        _notify(group, scores, on_scored)
    return scores


def passes_layer_wise(engine: Engine) -> bool:
    """Whether this configuration's outputs are independent of which experts are resident."""
    return engine.live.config.precision.scheme not in ON_MISS


def scored_chunk(engine: Engine, length: int) -> int:
    """Tokens of a chunk of a text this long when all its logits are needed.

    A text stays in one chunk if the model cannot continue a chunk.
    """
    fraction = max(1, LOGIT_BYTES // (8 * engine.facts.vocabulary))
    chunk = engine.chunk_tokens(length)
    return chunk if chunk == length else min(chunk, fraction)


def _observe(jobs: Iterable[_Job], observer: Observer) -> None:
    for job in jobs:
        if job.tokens[: len(observer.tokens)] == observer.tokens and not job.first_scored:
            job.observer = observer
            return


def _score_layer_wise(
    engine: Engine,
    jobs: Sequence[_Job],
    scores: list[Score],
    on_scored: OnScored | None,
    routes: RouteRecorder | None,
) -> Sequence[_Job]:
    """Score group by group. Returns the jobs that the ordinary loop has to score."""
    if not jobs or not passes_layer_wise(engine):
        return jobs
    longest = padded_length(len(jobs[0].tokens))
    done = 0
    try:
        with engine.layer_wise(longest) as passing:
            for group in _batched_groups(jobs, passing.batch_tokens, passing.capacity_tokens):

                def read(
                    number: int, row: int, first: int, logits: torch.Tensor, group: Any = group
                ) -> None:
                    _add_scores(group[number][row], first, logits, scores)

                batches = [_text_batch(batch) for batch in group]
                passing.run(
                    batches, read, on_routed=routes.group(batches) if routes is not None else None
                )
                finished = list(itertools.chain.from_iterable(group))
                done += len(finished)
                _notify(finished, scores, on_scored)
    except (InfeasibleError, UnknownHeadError) as error:
        logger.info("texts are scored by the ordinary loop: %s", error)
        rest = jobs[done:]
        for job in rest:  # some jobs of the interrupted group may have scores already
            for number, _ in job.members:
                scores[number] = Score()
        return rest
    return ()


def _notify(jobs: Iterable[_Job], scores: Sequence[Score], on_scored: OnScored | None) -> None:
    if on_scored is not None:
        on_scored({number: scores[number] for job in jobs for number, _ in job.members})


def _batched_groups(
    jobs: Sequence[_Job], batch_tokens: int, capacity: int
) -> Iterator[list[list[_Job]]]:
    """Batches of jobs of one padded length and at most batch_tokens, as many as fit the
    capacity."""
    group: list[list[_Job]] = []
    used = 0
    for length, same in itertools.groupby(jobs, key=lambda job: padded_length(len(job.tokens))):
        rest = list(same)
        while rest:
            count = max(1, min(batch_tokens, capacity - used) // length)
            if group and used + length > capacity:
                yield group
                group, used = [], 0
                continue
            group.append(rest[:count])
            used += len(rest[:count]) * length
            rest = rest[count:]
    if group:
        yield group


def _text_batch(jobs: Sequence[_Job]) -> TextBatch:
    length = padded_length(max(len(job.tokens) for job in jobs))
    rows = [[*job.tokens, *[job.tokens[-1]] * (length - len(job.tokens))] for job in jobs]
    return TextBatch(
        torch.tensor(rows),
        lengths=tuple(len(job.tokens) for job in jobs),
        wanted=tuple(job.first_scored for job in jobs),
    )


def _groups(engine: Engine, jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Groups of similar length that fit the memory plan: KV, and activations of a chunk."""
    assert engine.config is not None
    config = engine.config
    capacity = config.kv.max_tokens * config.batch.count * config.batch.size
    joint = config.prefill.chunk_tokens * config.batch.size * max(1, config.batch.count // 2)
    groups: list[list[_Job]] = []
    used = chunks = 0
    for job in jobs:
        length = padded_length(len(job.tokens))
        chunk = min(length, engine.chunk_tokens(length))
        fits = used + length <= capacity and chunks + chunk <= joint
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
    stepwise = engine.live.config.kv.keep_fraction != 1
    batches = [MicroBatch(torch.empty(1, 0, dtype=torch.long)) for _ in group]
    running = list(zip(group, batches, strict=True))
    while running:
        for job, batch in running:
            job.end = job.next_end(chunk, stepwise)
            piece = job.tokens[job.done : job.end]
            last = job.end == len(job.tokens)  # padding must not stand between two chunks
            job.padding = padded_length(len(piece)) - len(piece) if last else 0
            batch.tokens = torch.tensor([[*piece, *[piece[-1]] * job.padding]])
            batch.keep = max(1, min(len(piece), job.end - job.first_scored)) + job.padding
        jobs = [job for job, _ in running]

        def consume(number: int, logits: torch.Tensor, jobs: list[_Job] = jobs) -> None:
            job = jobs[number]
            kept = logits[0, : logits.shape[1] - job.padding]
            _add_scores(job, job.end - kept.shape[0], kept, scores)

        engine.forward([batch for _, batch in running], "prefill", consume)
        for job in jobs:
            job.done = job.end
        running = [(job, batch) for job, batch in running if job.done < len(job.tokens)]


def _add_scores(job: _Job, first: int, logits: torch.Tensor, scores: list[Score]) -> None:
    """logits: [n, V], of the positions from `first` on."""
    end = first + logits.shape[0]
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)  # [n, V]
    if job.observer is not None and first < len(job.observer.tokens):
        job.observer.read(first, log_probabilities[: len(job.observer.tokens) - first])
    best = log_probabilities.argmax(dim=-1)  # [n]
    for number, continuation in job.members:
        start = max(first, len(continuation.context) - 1)
        stop = min(end, len(continuation.context) + len(continuation.target) - 1)
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
