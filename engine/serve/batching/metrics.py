"""Counters of a server: totals for telemetry, and what is observed for Prometheus.

The engine's thread writes totals, any thread reads them. Text and token ids are never stored here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from engine.model.gates import RouterView
from engine.policy.events import Need, PassStart, Routing
from engine.run.engine import Engine
from engine.serve.batching.exposition import Exposition, Gauges
from engine.serve.batching.sequence import LiveSequence
from engine.trace.fingerprint import RoutingCounts
from engine.types import Phase

End = Literal["finished", "failed", "cancelled"]


@dataclass
class Totals:
    """Sums since the server started.

    cached_tokens: the part of prompt_tokens whose prefill was reused; *_s: seconds; stall_s: the
    part of decode_s spent waiting for records; decode_tokens: of all decode steps; ttft_*, tpot_*:
    over the sequences that have one; answers_*: look-ups in the response cache
    (serve.response_cache_entries), found or not. Answers found there count in nothing else.
    """

    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_s: float = 0.0
    output_tokens: int = 0
    decode_tokens: int = 0
    decode_s: float = 0.0
    stall_s: float = 0.0
    prefill_hits: int = 0
    prefill_misses: int = 0
    decode_hits: int = 0
    decode_misses: int = 0
    ttft_s: float = 0.0
    ttft_count: int = 0
    tpot_s: float = 0.0
    tpot_count: int = 0
    answers_known: int = 0
    answers_asked: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Hit rate of decoding; None if there were no look-ups."""
        return _fraction(self.decode_hits, self.decode_misses)

    @property
    def prefill_hit_rate(self) -> float | None:
        """Hit rate of prefill; None if there were no look-ups."""
        return _fraction(self.prefill_hits, self.prefill_misses)

    @property
    def answer_hit_rate(self) -> float | None:
        """Hit rate of the response cache; None if there were no look-ups."""
        return _fraction(self.answers_known, self.answers_asked)

    def since(self, earlier: Totals) -> Totals:
        """The difference from an earlier copy."""
        now, then = asdict(self), asdict(earlier)
        return Totals(**{name: now[name] - then[name] for name in now})

    def copy(self) -> Totals:
        """A copy of the present values."""
        return Totals(**asdict(self))


class RoutingWatch:
    """Implements RoutingRecorder: counts chosen experts, keeps no token."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, layers: int, experts: int) -> None:
        self.counts = RoutingCounts(layers, experts)

    def begin_sequences(self) -> None:
        """Does nothing: all sequences count together."""

    def begin_pass(self, start: PassStart) -> None:
        """Does nothing: all passes count together."""

    def gate_entered(self, layer: int, micro_batch: int, view: RouterView) -> None:
        """Never called: it needs nothing of a gate."""

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Count the choices of all tokens."""
        self.counts.add(layer, (expert for chosen in routing.experts for expert in chosen))


class Meters:
    """All counters of a server, and their two views. layers, experts: of the model; name: what
    clients call it."""

    def __init__(self, layers: int, experts: int, name: str = "") -> None:
        self.totals = Totals()
        self._lock = threading.Lock()
        self.routing = RoutingWatch(layers, experts)
        self._exposition = Exposition(name)

    def watch(self, gauges: Gauges) -> None:
        """Export totals and these gauges to Prometheus."""
        self._exposition.watch(self.totals, gauges)

    def exposition(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return self._exposition.text()

    def request(self, route: str, code: int) -> None:
        """Count an answered HTTP request."""
        self._exposition.request(route, code)

    def looked_up(self, known: bool) -> None:
        """Count a look-up in the response cache. Any thread may call."""
        with self._lock:
            if known:
                self.totals.answers_known += 1
            else:
                self.totals.answers_asked += 1

    def started(self, sequence: LiveSequence) -> None:
        """Count a sequence that has got a place in the group."""
        sequence.timing.started_s = time.monotonic()
        self._exposition.observe("queue_seconds", sequence.timing.queue_s)

    def progressed(self, sequence: LiveSequence, tokens: int) -> None:
        """Count the new tokens of a sequence in one step."""
        self.totals.output_tokens += tokens
        timing = sequence.timing
        if tokens and timing.tokens > 1:
            self._exposition.observe("inter_token_seconds", timing.newest_s)
        if tokens and timing.tokens == 1 and timing.ttft_s is not None:
            self._exposition.observe("ttft_seconds", timing.ttft_s)
            self.totals.ttft_s += timing.ttft_s
            self.totals.ttft_count += 1

    def ended(self, sequence: LiveSequence, end: End) -> None:
        """Count the end of a sequence."""
        setattr(self.totals, end, getattr(self.totals, end) + 1)
        reasons = {"failed": "error", "cancelled": "abort"}
        self._exposition.ended(sequence, reasons.get(end) or sequence.finish or "stop")
        tpot_s = sequence.timing.tpot_s
        if tpot_s is not None:
            self.totals.tpot_s += tpot_s
            self.totals.tpot_count += 1

    @contextmanager
    def reading(self, engine: Engine, newcomers: Sequence[LiveSequence]) -> Iterator[None]:
        """Count a group of prompts during their prefill."""
        hits, misses, started = *_lookups(engine, "prefill"), time.monotonic()
        yield
        now = _lookups(engine, "prefill")
        self.totals.prefill_s += time.monotonic() - started
        self.totals.prompt_tokens += sum(len(one.wanted.prompt) for one in newcomers)
        self.totals.cached_tokens += sum(one.cached for one in newcomers)
        self.totals.prefill_hits += now[0] - hits
        self.totals.prefill_misses += now[1] - misses

    @contextmanager
    def decoding(self, engine: Engine, tokens: int) -> Iterator[None]:
        """Count one decode step of this many sequences."""
        hits, misses, started = *_lookups(engine, "decode"), time.monotonic()
        waited_s = _waited_s(engine)
        yield
        now = _lookups(engine, "decode")
        self.totals.decode_s += time.monotonic() - started
        self.totals.stall_s += _waited_s(engine) - waited_s
        self.totals.decode_tokens += tokens
        self.totals.decode_hits += now[0] - hits
        self.totals.decode_misses += now[1] - misses


def _fraction(part: float, rest: float) -> float | None:
    return part / (part + rest) if part + rest else None


def _lookups(engine: Engine, phase: Phase) -> tuple[int, int]:
    counters = engine.residency.counters
    return counters.hits[phase], counters.misses[phase]


def _waited_s(engine: Engine) -> float:
    return engine.clock.seconds["transfer_wait"] + engine.clock.seconds["disk_wait"]
