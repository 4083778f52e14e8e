"""The policy of a run: predictor, cache, precision and placement in one object.

In: the events of engine.policy.events. Out: steps to run and fetches to start. The engine executes
them with real bytes, the replay with simulated ones; every decision is made here, so both decide
alike. Holds no bytes, no torch, no clock.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engine.policy.events import GateView, Need, PassStart, Routing
from engine.policy.expert_cache import ExpertCache
from engine.policy.future import Future
from engine.policy.placement import Placement
from engine.policy.precision import PrecisionPolicy, UniformPrecision
from engine.policy.predict.base import Prediction, Predictor
from engine.policy.predict.none import NoPredictor
from engine.policy.steps import ON_HOST, Fetch, LayerPass, Step
from engine.types import Phase


@dataclass
class PolicyCounters:
    """Look-ups and predictions since the last reset, by phase.

    hits + misses = look-ups; skipped and on_host are among the misses; hits_by_layer,
    misses_by_layer: of decoding; predicted*_by_layer: both phases together.
    """

    hits: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    misses: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    skipped: int = 0
    on_host: int = 0
    low: int = 0
    predicted: int = 0
    predicted_demanded: int = 0
    predicted_layer_demand: int = 0
    prefetched: int = 0
    hits_by_layer: Counter[int] = field(default_factory=Counter)
    misses_by_layer: Counter[int] = field(default_factory=Counter)
    predicted_by_layer: Counter[int] = field(default_factory=Counter)
    predicted_demanded_by_layer: Counter[int] = field(default_factory=Counter)


class ExpertPolicy:
    """Combines the mechanisms that decide.

    stop_at_miss: predictions of one event end at the first layer with a missing expert (HOBBIT);
    limit: maximum number of fetches per prediction, 0 for no limit.
    """

    def __init__(
        self,
        cache: ExpertCache,
        predictor: Predictor,
        precision: PrecisionPolicy,
        placement: Placement,
        future: Future,
        *,
        stop_at_miss: bool = False,
        limit: int = 0,
    ) -> None:
        self.cache = cache
        self.future = future
        self._predictor = predictor
        self._precision = precision
        self._placement = placement
        self._stop_at_miss = stop_at_miss
        self._limit = limit
        self._phase: Phase = "decode"
        self._micro_batches = 1
        self._predicted: dict[int, dict[int, None]] = {}
        self.tokens: dict[int, int] = {}
        self.needs: frozenset[Need] = predictor.needs | precision.needs
        self.watches_gate = bool(predictor.needs & {"top_experts", "gate_input"})
        self.counters = PolicyCounters()

    @property
    def only_follows(self) -> bool:
        """Whether nothing but demand has an effect, and a resident expert stays one until another
        takes its slot: then a layer pass of residents may be told after it was computed."""
        return (
            type(self._predictor) is NoPredictor  # others inherit from it
            and type(self._precision) is UniformPrecision
            and not self._placement.uses_host
            and self.cache.keeps
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the policies that are needed to interpret this run's metrics."""
        found = []
        fallback = getattr(self._predictor, "fallback", None)
        if fallback:
            found.append(str(fallback))
        if self.future.known:
            found.append("the future is known: this text was routed before, untimed")
        return tuple(found)

    def begin_sequences(self) -> None:
        """Notify the mechanisms that new sequences begin."""
        self.cache.begin_sequences()
        self._predictor.begin_sequences()

    def begin_pass(self, start: PassStart) -> list[Fetch]:
        """Start a forward pass. Returns the fetches it starts."""
        self._phase = start.phase
        self._micro_batches = len(start.tokens)
        self.future.begin_pass()
        return self._follow(self._predictor.begin_pass(start))

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> list[Fetch]:
        """A router is about to run (called only if watches_gate). Returns the fetches to start."""
        return self._follow(self._predictor.gate_entered(layer, micro_batch, view))

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> list[Step]:
        """The routing of one micro-batch is known. Returns the steps that have a place."""
        if self.cache.current is None:
            self.cache.begin(layer)
            self.future.begin_layer(layer)
            self._placement.begin_layer()
            self.tokens = {}
        self._predictor.routed(layer, micro_batch, routing)
        tokens = _tokens_by_expert(routing)
        if self.tokens:
            for expert, count in tokens.items():
                self.tokens[expert] = self.tokens.get(expert, 0) + count
        else:
            self.tokens = dict(tokens)
        wanted = self._precision.demanded(layer, self._phase, routing)
        on_host: frozenset[int] = frozenset()
        if self._placement.uses_host:
            missing = self.cache.missing(layer, tokens)
            on_host = self._placement.on_host([(e, tokens[e]) for e in missing])
        more = micro_batch + 1 < self._micro_batches
        return self.cache.demand(tokens, wanted, on_host, more_to_come=more)

    def layer_routed(self) -> tuple[list[Step], list[Fetch]]:
        """All micro-batches are routed. Returns the steps that were placed only now, and the
        fetches that start after all demands."""
        steps = self.cache.finish()
        assert self.cache.current is not None
        self._count(self.cache.current)
        fetches = self._admit(self.cache.current) if self._placement.uses_host else []
        fetches += self._follow(self._predictor.layer_routed(self.cache.current.layer))
        return steps, fetches

    def followed(self, layer: int, routing: Routing) -> None:
        """A whole layer pass in which all demanded experts were residents, of a policy that only
        follows: what routed, layer_routed and computed come to then."""
        self.future.begin_layer(layer)
        self.tokens = dict(_tokens_by_expert(routing))
        self.cache.use_residents(layer, self.tokens)
        counters, count = self.counters, len(self.tokens)
        counters.hits[self._phase] += count
        if self._phase == "decode":
            counters.hits_by_layer[layer] += count

    def computed(self) -> LayerPass:
        """The layer's experts are computed. Returns the ended pass."""
        return self.cache.end()

    def end_pass(self) -> None:
        """End the forward pass."""
        self._predictor.end_pass()

    def reset_counters(self) -> None:
        """Reset all counters."""
        self.counters = PolicyCounters()

    def _admit(self, current: LayerPass) -> list[Fetch]:
        """Fetches for experts that the host computes and that move to the device behind."""
        computed = {step.expert.expert: step for step in current.steps if step.slot == ON_HOST}
        return self.cache.admit([computed[e] for e in self._placement.admitted(tuple(computed))])

    def _follow(self, predictions: Iterable[Prediction]) -> list[Fetch]:
        fetches: list[Fetch] = []
        for prediction in predictions:
            layer, experts = prediction.layer, prediction.experts
            if not experts:
                continue
            self._predicted.setdefault(layer, {}).update(dict.fromkeys(experts))
            complete = not self._stop_at_miss or not self.cache.missing(layer, experts)
            scores = dict(zip(experts, prediction.scores, strict=True)) if prediction.scores else {}
            if self._limit:
                experts = self._limited(layer, experts)
            ranked = [scores[expert] for expert in experts] if scores else ()
            wanted = self._precision.predicted(layer, self._phase, experts, ranked)
            fetches += self.cache.prefetch(layer, experts, wanted, scores)
            if not complete:
                break
        self.counters.prefetched += len(fetches)
        return fetches

    def _limited(self, layer: int, experts: tuple[int, ...]) -> tuple[int, ...]:
        """The predicted residents, and the best `limit` of the others."""
        dropped = frozenset(self.cache.missing(layer, experts)[self._limit :])
        return tuple(expert for expert in experts if expert not in dropped)

    def _count(self, done: LayerPass) -> None:
        counters, phase, layer = self.counters, self._phase, done.layer
        hits = 0
        for step in done.steps:
            hits += step.hit
            counters.on_host += step.slot == ON_HOST
            counters.low += step.bits != self._precision.high
        lookups = len(self.tokens)
        counters.hits[phase] += hits
        counters.misses[phase] += lookups - hits
        if phase == "decode":
            counters.hits_by_layer[layer] += hits
            counters.misses_by_layer[layer] += lookups - hits
        counters.skipped += lookups - len(done.steps)
        predicted = self._predicted.pop(layer, None)
        if predicted is not None:
            demanded = len(self.tokens.keys() & predicted.keys())
            counters.predicted += len(predicted)
            counters.predicted_demanded += demanded
            counters.predicted_by_layer[layer] += len(predicted)
            counters.predicted_demanded_by_layer[layer] += demanded
            counters.predicted_layer_demand += lookups


def _tokens_by_expert(routing: Routing) -> Mapping[int, int]:
    """Number of tokens that chose each expert, in routing order."""
    if len(routing.experts) == 1:
        return dict.fromkeys(routing.experts[0], 1)
    return Counter(itertools.chain.from_iterable(routing.experts))
