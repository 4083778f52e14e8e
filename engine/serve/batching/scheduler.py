"""The only thread that uses the engine: it batches waiting sequences and generates their tokens.

At most batch.count x batch.size sequences run together, each as its own micro-batch, because the
sequences of one micro-batch must have equal lengths. Before each step finished and cancelled
sequences leave, and waiting ones take their places: their prompts are prefilled together, then all
decode together.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from engine.config.settings import EngineConfig
from engine.errors import EngineError
from engine.run.engine import Engine
from engine.run.generate import end_tokens
from engine.serve.batching.exposition import Gauges
from engine.serve.batching.metrics import Meters
from engine.serve.batching.prefill import PromptReading
from engine.serve.batching.response_cache import ResponseCache
from engine.serve.batching.sequence import Deliver, LiveSequence, SequenceRequest, StepOutput

log = logging.getLogger(__name__)


class QueueFullError(EngineError):
    """The queue of waiting sequences is full."""


class TooManyError(EngineError):
    """One request asks for more sequences than an empty queue takes."""


class EngineLoop:
    """Runs sequences on a configured engine.

    queue: maximum number of waiting sequences; meters: counters; on_failure: called once from its
    thread when the engine cannot continue; answers: the response cache.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        queue: int,
        meters: Meters,
        on_failure: Callable[[str], None],
        answers: ResponseCache | None = None,
    ) -> None:
        assert engine.config is not None, "configure first"
        self.queue = queue
        self._engine = engine
        self._config: EngineConfig = engine.config
        self.rows = self._config.batch.count * self._config.batch.size
        self._tokenizer = tokenizer
        self._ends = end_tokens(engine)
        self._meters = meters
        self._on_failure = on_failure
        self._answers = answers
        self._changed = threading.Condition()
        self._waiting: deque[LiveSequence] = deque()
        self._running: list[LiveSequence] = []
        self._closing = False
        self.failure: str | None = None
        self._reading = PromptReading(engine)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._engine.record(self._meters.routing)
        self._thread.start()

    def close(self) -> None:
        """Stop after the current step; unfinished sequences fail."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Number of sequences in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of sequences being generated, without those whose answer is complete."""
        return sum(not one.done for one in self._running)

    def submit(self, wanted: Sequence[tuple[SequenceRequest, Deliver]]) -> list[LiveSequence]:
        """Queue sequences, all or none. Returns the queued ones.

        `deliver` of each is called from the engine's thread, or in this thread if the answer is in
        the response cache. Raises QueueFullError if they do not fit, TooManyError if they never
        would, EngineError once the engine has failed.
        """
        known, asked = self._look_up(wanted)
        with self._changed:
            if self.failure is not None or self._closing:
                raise EngineError(self.failure or "the server is shutting down")
            running = self.running
            most = self.queue + self.rows
            if len(asked) > most:
                raise TooManyError(
                    f"the request asks for {len(asked)} sequences (prompts times n), this server "
                    f"takes {most} at once: send fewer"
                )
            free = self.queue + self.rows - running - len(self._waiting)
            if len(asked) > free:
                raise QueueFullError(
                    f"{running} sequences run and {len(self._waiting)} wait, at most "
                    f"{self.rows} run and {self.queue} wait: try again later"
                )
            made = [LiveSequence(one, self._tokenizer, self._ends, out) for one, out in asked]
            self._waiting.extend(made)
            self._changed.notify()
        for output, deliver in known:
            deliver(output)
        return made

    def _look_up(
        self, wanted: Sequence[tuple[SequenceRequest, Deliver]]
    ) -> tuple[list[tuple[StepOutput, Deliver]], list[tuple[SequenceRequest, Deliver]]]:
        """Split into cached answers and requests for the engine."""
        if self._answers is None:
            return [], list(wanted)
        known, asked = [], []
        for one, deliver in wanted:
            found = self._answers.find(one)
            self._meters.looked_up(found is not None)
            if found is None:
                asked.append((one, self._answers.recording(one, deliver)))
            else:
                known.append((found, deliver))
        return known, asked

    def cancel(self, sequences: Sequence[LiveSequence]) -> None:
        """Cancel these sequences: their client has gone."""
        with self._changed:
            for sequence in sequences:
                sequence.cancelled = True
                if sequence in self._waiting:
                    self._waiting.remove(sequence)
                    self._meters.ended(sequence, "cancelled")

    def gauges(self) -> Gauges:
        """What Prometheus reads from any thread."""
        return Gauges(
            lambda: self.running,
            lambda: self.waiting,
            self._kv_used_ratio,
            bool(self._config.serve.prefix_cache_tokens),
        )

    def _kv_used_ratio(self) -> float:
        """The part of kv.max_tokens x places that running sequences fill, 0 to 1."""
        filled = (len(one.wanted.prompt) + one.timing.tokens for one in list(self._running))
        return min(1.0, sum(filled) / (self._config.kv.max_tokens * self.rows))

    # The engine's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        while self._gather():
            try:
                self._open_elastic()
                self._step()
            except Exception as error:
                log.exception("a step failed")
                self._recover(error)
        self._fail_all(self.failure or "the server is shutting down")

    def _gather(self) -> bool:
        """Wait for work and move waiting sequences to free places. False: the loop must stop."""
        with self._changed:
            self._leave()
            while not (self._waiting or self._running or self._closing or self.failure):
                self._changed.wait()
            while self._waiting and len(self._running) < self.rows:
                self._running.append(self._waiting.popleft())
                self._meters.started(self._running[-1])
            return not self._closing and self.failure is None

    def _leave(self) -> None:
        """Remove sequences that are done or cancelled; their keys and values are freed."""
        staying: list[LiveSequence] = []
        for sequence in self._running:
            if not (sequence.done or sequence.cancelled):
                staying.append(sequence)
                continue
            sequence.batch.kv = None
            if not sequence.done:
                self._meters.ended(sequence, "cancelled")
        self._running = staying

    def _open_elastic(self) -> None:
        """Lends unreserved KV memory to expert slots (kv.elastic)."""
        if not self._config.kv.elastic:
            return
        capacity = self._config.kv.max_tokens
        wanted = (len(one.wanted.prompt) + one.wanted.max_tokens for one in self._running)
        reserved = sum(min(capacity, tokens) for tokens in wanted)
        self._engine.open_elastic(max(0.0, 1 - reserved / (capacity * self.rows)))

    def _step(self) -> None:
        """Prefill new sequences, then decode one token of every sequence."""
        newcomers = [one for one in self._running if one.batch.kv is None]
        if newcomers:
            with self._meters.reading(self._engine, newcomers):
                logits = self._reading.read(newcomers)
            self._accept(newcomers, logits)
        going = [one for one in self._running if not (one.done or one.cancelled)]
        if going:
            with self._meters.decoding(self._engine, len(going)):
                logits = self._engine.forward([one.batch for one in going], "decode")
            self._accept(going, logits)

    def _accept(self, sequences: Sequence[LiveSequence], logits: Sequence[torch.Tensor]) -> None:
        for sequence, rows in zip(sequences, logits, strict=True):
            if sequence.cancelled:
                continue
            before = sequence.timing.tokens
            sequence.accept(rows)
            self._meters.progressed(sequence, sequence.timing.tokens - before)
            if sequence.done:
                self._meters.ended(sequence, "finished")

    def _recover(self, error: Exception) -> None:
        """Fail the running sequences. A failed step leaves the engine without a configuration:
        configure again, or give up."""
        if isinstance(error, torch.OutOfMemoryError):
            error = self._engine.device.out_of_memory(error)
        reason = str(error) if isinstance(error, EngineError) else type(error).__name__
        for sequence in self._running:
            if not sequence.done:
                sequence.fail(f"the engine failed: {reason}")
                self._meters.ended(sequence, "failed")
        try:
            self._engine.configure(self._config)
            self._reading = PromptReading(self._engine)
            self._engine.record(self._meters.routing)
        except Exception as again:
            log.exception("the engine cannot be configured again")
            self.failure = f"the engine failed and cannot be configured again: {again}"
            self._on_failure(self.failure)

    def _fail_all(self, reason: str) -> None:
        with self._changed:
            left = [*self._running, *self._waiting]
            self._running, self._waiting = [], deque()
        for sequence in left:
            if not sequence.done:
                sequence.fail(reason)
                self._meters.ended(sequence, "failed")
