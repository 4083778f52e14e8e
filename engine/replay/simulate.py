"""Replay: a discrete-event simulation of a config over a trace and a profile.

In: the inputs of an engine run. Out: predictions of the metrics that the engine would report.
Decisions are the engine's own (ExpertPolicy); only time is simulated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, replace

from engine.config.settings import EngineConfig
from engine.errors import UsageError
from engine.facts.adjusted_timings import at_precision
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings
from engine.memory.plan import Resolved, resolve
from engine.policy.batch_plan import host_fraction, with_host_ratios
from engine.policy.context import PolicyContext
from engine.policy.events import Floats
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.future import Future
from engine.policy.registry import build_policy
from engine.precision.table import run_bits
from engine.replay import native_clock
from engine.replay.clock import Clock, PassTime
from engine.replay.decisions import DecisionRecorder, Decisions, decision_key
from engine.replay.tier import has_tiers
from engine.replay.walk import walk
from engine.trace.trace import Trace, mismatch


@dataclass
class Replay:
    """The result of a replay. times: of each pass in order."""

    config: EngineConfig
    policy: ExpertPolicy
    times: list[PassTime]
    in_time: int
    prefetched_demanded: int

    def metrics(self, passes: Iterable[int] | None = None) -> dict[str, float]:
        """The engine's metrics over these passes (all by default); a group of sequences counts
        from its first prefill pass to its last decode pass."""
        chosen = None if passes is None else frozenset(passes)
        times = [t for t in self.times if chosen is None or t.number in chosen]
        prefill = [t for t in times if t.phase == "prefill"]
        decode = [t for t in times if t.phase == "decode"]
        groups = {t.group for t in times}
        prefill_s = sum(t.seconds for t in prefill)
        decode_s = sum(t.seconds for t in decode)
        decoded = sum(t.tokens for t in decode)
        sequences = _sequences(decode, groups)
        found: dict[str, float] = {}
        if prefill_s > 0:
            found["prefill_tps"] = sum(t.tokens for t in prefill) / prefill_s
            found["ttft_ms"] = prefill_s / len(groups) * 1e3
        if decoded and decode_s > 0:
            steps = len(decode) / len(groups)
            found["decode_tps"] = decoded / decode_s
            found["output_tps"] = (decoded + sequences) / (prefill_s + decode_s)
            found["tpot_ms"] = decode_s / len(groups) / steps * 1e3
            found["transfer_bytes_per_token"] = sum(t.moved_bytes for t in decode) / decoded
            parts: dict[str, float] = defaultdict(float)
            for time in decode:
                for name, seconds in time.activities.items():
                    parts[name] += seconds
            for name, seconds in parts.items():
                found[f"time_ms_per_token.{name}"] = seconds * 1e3 / decoded
            found["stall_ms_per_token"] = found.get("time_ms_per_token.wait", 0.0)
        counters = self.policy.counters
        for phase, name in (("decode", "expert_hit_rate"), ("prefill", "expert_hit_rate.prefill")):
            hits, misses = counters.hits[phase], counters.misses[phase]  # type: ignore[index]
            found[name] = hits / (hits + misses) if hits + misses else 0.0
        if counters.predicted:
            found["prefetch_precision"] = counters.predicted_demanded / counters.predicted
            demand = max(1, counters.predicted_layer_demand)
            found["prefetch_recall"] = counters.predicted_demanded / demand
        if self.prefetched_demanded:
            found["prefetch_in_time"] = self.in_time / self.prefetched_demanded
        return found


def replay(
    config: EngineConfig,
    facts: ModelFacts,
    trace: Trace,
    profile: ModelTimings,
    *,
    history: Trace | None = None,
    learned: dict[str, Floats] | None = None,
    warm: Iterable[int] = (),
    known: MutableMapping[str, Decisions] | None = None,
) -> Replay:
    """Run a config over a trace.

    history: trace for the policies' initial statistics; warm: numbers of passes that come first and
    whose look-ups are not counted; known: decisions over this very trace and history, by
    decision_key, to which those of this config are added. Raises InfeasibleError if the config does
    not fit, UsageError if the trace lacks what its policies need.
    """
    resolved = resolve_for(config, facts, profile)
    untimed = [bits for bits in run_bits(resolved.config) if bits not in profile.timed_bits]
    if untimed:
        raise UsageError(
            f"these timings lack {', '.join(map(str, untimed))} bits: time them too, with `tune "
            f"profile --bits {','.join(map(str, sorted({*profile.timed_bits, *untimed})[::-1]))}`"
        )
    precision = resolved.config.precision
    profile = at_precision(profile, precision.non_expert_bits, precision.activation_bits)
    if resolved.config.compute.capture:  # each micro-batch is replayed by itself
        profile = replace(profile, together=False)
    run = _Run(resolved, facts, trace, profile, history, learned or {}, sorted(warm))
    if not native_clock.is_available():
        return run.timed()
    known = {} if known is None else known
    key = decision_key(resolved, has_host=may_use_host(resolved.config, facts, profile))
    if key not in known:
        known[key] = run.decided()
    times = native_clock.run(known[key], resolved.config, facts, profile)
    return Replay(resolved.config, known[key].policy, *times)


def resolve_for(config: EngineConfig, facts: ModelFacts, profile: ModelTimings) -> Resolved:
    """Resolves a config, and how its placement splits by this profile, if that has a host."""
    resolved = resolve(config, facts)
    config = with_host_ratios(resolved.config, facts, profile)
    known = config.precision.bits in profile.host_expert_s.keys() & profile.sources.keys()
    if known and config.placement.host_fraction == "auto":
        fraction = host_fraction(config, facts, profile)
        config = config.overlay({"placement.host_fraction": fraction})
    return resolved._replace(config=config)


def may_use_host(config: EngineConfig, facts: ModelFacts, profile: ModelTimings) -> bool:
    """Whether the host may compute experts of a resolved config: it was timed and has records."""
    return bool(profile.host_expert_s) and has_tiers(config, facts, profile)


@dataclass(frozen=True)
class _Run:
    """One policy over one trace."""

    resolved: Resolved
    facts: ModelFacts
    trace: Trace
    profile: ModelTimings
    history: Trace | None
    learned: dict[str, Floats]
    warm: Sequence[int]

    def decided(self) -> Decisions:
        """The policy's decisions, without their time."""
        policy, future = self._policy()
        recorder = DecisionRecorder(self.resolved.config, self.facts, policy)
        self._walk(policy, future, recorder)
        return recorder.decisions()

    def timed(self) -> Replay:
        """The time of the policy's decisions as they are made."""
        config = self.resolved.config
        policy, future = self._policy()
        clock = Clock(config, self.facts, self.profile, policy)
        self._walk(policy, future, clock)
        return Replay(config, policy, clock.times, clock.in_time, clock.prefetched_demanded)

    def _policy(self) -> tuple[ExpertPolicy, Future]:
        config, memory = self.resolved
        future = Future(self.facts.moe_layers)
        context = PolicyContext(config, self.facts, future, self.history, self.learned)
        has_host = may_use_host(config, self.facts, self.profile)
        slots = memory.slots_by_bits or memory.slots
        policy = build_policy(context, slots, host_compute=has_host)
        sizes = self.facts.moe_layers, self.facts.experts
        if (wrong := mismatch(self.trace, *sizes, policy.needs)) is not None:
            raise UsageError(f"this trace {wrong}")
        return policy, future

    def _walk(
        self, policy: ExpertPolicy, future: Future, listener: Clock | DecisionRecorder
    ) -> None:
        together = self.profile.together
        if self.warm:
            walk(self.trace, policy, listener, self.warm, together=together)
            policy.reset_counters()
            listener.reset_arrivals()
        first = frozenset(self.warm)
        rest = [number for number in range(len(self.trace.passes)) if number not in first]
        future.load(self.trace, rest)
        walk(self.trace, policy, listener, rest, together=together)


def _sequences(decode: Sequence[PassTime], groups: set[int]) -> int:
    """Number of sequences of all groups: tokens of each group's first decode pass."""
    first = {group: next((t.tokens for t in decode if t.group == group), 0) for group in groups}
    return sum(first.values())
