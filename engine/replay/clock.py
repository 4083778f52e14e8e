"""The clock of a replay: how long the decisions of a policy take.

In: decisions, as they are made. Out: seconds of every pass by activity. The plain version of
sources/replay.cpp, which gives the same bits (engine.replay.native_clock).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, at
from engine.memory.records import record_bytes_of
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.registry import ORDERS, QUEUES
from engine.policy.steps import ON_HOST, Fetch, Step
from engine.precision.table import run_bits
from engine.replay.tier import partial_tiers, record_source
from engine.replay.transfers import SimulatedTransfer, SimulatedTransfers
from engine.trace.trace import TracePass
from engine.types import Bits, ExpertId, Phase


def may_pass_unasked(batches: int, policy: ExpertPolicy, timings: ModelTimings) -> bool:
    """Whether decoded tokens go through several layers before the policy is asked, as long as all
    that they demand is there (engine.run.native_pass)."""
    joined = batches == 1 or timings.together
    return timings.ready is not None and joined and policy.only_follows


@dataclass
class PassTime:
    """One simulated pass: seconds by activity, bytes moved."""

    number: int
    group: int
    phase: Phase
    tokens: int
    seconds: float = 0.0
    activities: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    moved_bytes: float = 0.0


class Clock:
    """Implements Listener: simulates the time of every decision."""

    def __init__(
        self,
        config: EngineConfig,
        facts: ModelFacts,
        profile: ModelTimings,
        policy: ExpertPolicy,
    ) -> None:
        self._profile = profile
        self._policy = policy
        self._order = ORDERS[config.batch.order]()
        self._bits = config.precision.bits
        self._slower = profile.contention[self._bits]
        self._slower_beside_host = profile.host_contention.get(self._bits, 1.0)
        self._transfers = SimulatedTransfers(
            QUEUES[config.transfer.queue](),
            workers=min(config.io.threads, config.transfer.in_flight),
            chunk_bytes=config.transfer.chunk_bytes,
        )
        self._record = {bits: record_bytes_of(config, facts, bits) for bits in run_bits(config)}
        self._sources = {
            bits: record_source(config, facts, profile, bits) for bits in run_bits(config)
        }
        self._tiers = partial_tiers(config, facts, profile)
        self._now = 0.0
        self._host_free = 0.0
        self._waited = self._slept = False
        self._moved = 0.0
        self._in_slot: dict[int, SimulatedTransfer] = {}
        self._prefetching: dict[int, list[SimulatedTransfer]] = defaultdict(list)
        self._steps: list[Step] = []
        self._tokens = 0
        may_pass = may_pass_unasked(config.batch.count, policy, profile)
        self._ready = profile.ready if may_pass else None
        self._held: list[tuple[bool, int]] | None = None
        self._started = 0.0
        self.in_time = self.prefetched_demanded = 0
        self.times: list[PassTime] = []

    def reset_arrivals(self) -> None:
        """Reset the arrival counters."""
        self.in_time = self.prefetched_demanded = 0

    def begin_pass(self, number: int, item: TracePass, fetches: Sequence[Fetch]) -> None:
        """Start the fetches for the first layers, then spend the fixed time of a pass."""
        tokens = sum(item.tokens)
        self.times.append(PassTime(number, item.group, item.phase, tokens))
        self._started = self._now
        self._holds = self._ready is not None and item.phase == "decode"
        self._fetch(fetches)
        self._spend("other", at(self._profile.pass_s, tokens))
        self._hold()

    def gate_entered(self, layer: int, tokens: int, fetches: Sequence[Fetch]) -> None:
        """Spend the time of the layer's non-expert weights, the gate look-ahead and the router."""
        if self._held is not None:
            self._held.append((True, tokens))
            return
        self._enter(tokens, fetches)

    def _enter(self, tokens: int, fetches: Sequence[Fetch]) -> None:
        self._spend("non_expert", at(self._profile.non_expert_s, tokens) + self._woken_s())
        if self._policy.watches_gate:
            self._spend("policy", self._profile.gate_lookahead_s)
        self._fetch(fetches)
        self._spend("router", at(self._profile.router_s, tokens))

    def routed(self, layer: int, tokens: int, steps: Sequence[Step]) -> None:
        """Start the misses; promote predicted transfers that are demanded."""
        if not self._steps:
            self._tokens = 0
        self._tokens += tokens
        if self._held is not None:
            self._held.append((False, tokens))
            if all(map(self._is_there, steps)):
                self._steps.extend(steps)
                return
            self._ask()
        else:
            self._spend("policy", at(self._profile.policy_s, tokens))
        prefetching = self._prefetching[layer]
        for step in steps:
            if step.slot == ON_HOST:
                continue
            if not step.hit:
                self._load(step.expert, step.slot, step.bits, demanded=True)
                continue
            transfer = self._in_slot.get(step.slot)
            if transfer is None:
                continue
            arrived = self._transfers.is_ready(self._now, transfer)
            if not arrived:
                self._transfers.promote(self._now, transfer)
            if transfer in prefetching:
                self.prefetched_demanded += 1
                self.in_time += arrived
        self._steps.extend(steps)

    def layer_routed(self, layer: int, steps: Sequence[Step], fetches: Sequence[Fetch]) -> None:
        """Compute the layer's experts in the order given by the config."""
        if self._held is not None:
            if not steps:
                self._pass_unasked()
                return
            self._ask()
        for step in steps:
            if step.after is None:
                self._load(step.expert, step.slot, step.bits, demanded=True)
        self._steps.extend(steps)
        self._demote(layer)
        self._fetch(fetches)
        self._spend("compute", at(self._profile.layer_s[self._bits], self._tokens))
        host_done = self._start_host()
        waiting = {step.after: step for step in steps if step.after is not None}
        pending = [s for s in self._steps if s.slot != ON_HOST and s.after is None]
        while pending:
            chosen = self._order.next(pending, self._is_ready, self._policy.tokens)
            if chosen is None or not self._is_ready(chosen):
                self._wait(pending if chosen is None else [chosen])
                if chosen is None:
                    continue
            pending.remove(chosen)
            count = self._policy.tokens[chosen.expert.expert]
            seconds = at(self._profile.expert_s[chosen.bits], count)
            if self._waited:
                seconds += self._profile.restart_s[self._bits]
                self._waited = False
            self._spend("compute", seconds)
            follower = waiting.pop(chosen.expert, None)
            if follower is not None:
                self._load(follower.expert, follower.slot, follower.bits, demanded=True)
                pending.append(follower)
        if host_done > self._now:
            self.times[-1].activities["compute"] += host_done - self._now
            self._now = host_done
        self._steps = []
        self._hold()

    def end_pass(self) -> None:
        """Record the time and the moved bytes of the pass."""
        self._transfers.advance(self._now)
        time = self.times[-1]
        time.seconds = self._now - self._started
        time.moved_bytes = self._transfers.moved_bytes - self._moved
        self._moved = self._transfers.moved_bytes

    # A layer that may be passed unasked: what it would spend is held until that is known ----------

    def _hold(self) -> None:
        self._held = [] if self._holds else None

    def _ask(self) -> None:
        """Spend what was held."""
        held, self._held = self._held or [], None
        for is_gate, tokens in held:
            if is_gate:
                self._enter(tokens, ())
            else:
                self._spend("policy", at(self._profile.policy_s, tokens))

    def _pass_unasked(self) -> None:
        ready, held = self._ready, self._held
        assert ready is not None
        assert held is not None
        entered = sum(tokens for is_gate, tokens in held if is_gate)
        self._spend("non_expert", at(ready.non_expert_s, entered) + self._woken_s())
        self._spend("policy", at(ready.policy_s, self._tokens))
        for step in self._steps:
            count = self._policy.tokens[step.expert.expert]
            self._spend("compute", at(ready.expert_s[step.bits], count))
        self._steps = []
        self._hold()

    def _woken_s(self) -> float:
        """What a wait in the layer before costs what follows."""
        slept, self._slept = self._slept, False
        return self._profile.restart_non_expert_s if slept else 0.0

    def _is_there(self, step: Step) -> bool:
        if step.slot == ON_HOST or not step.hit:
            return False
        transfer = self._in_slot.get(step.slot)
        return transfer is None or self._transfers.is_ready(self._now, transfer)

    def _spend(self, activity: str, seconds: float) -> None:
        if seconds > 0:
            seconds *= self._slowness(seconds)
        self.times[-1].activities[activity] += seconds
        self._now += seconds

    def _slowness(self, seconds: float) -> float:
        """The slowdown factor of these seconds from moving chunks and a computing host."""
        slowness = 1.0
        if self._slower != 1.0:
            fraction = self._transfers.moving_fraction(self._now, self._now + seconds)
            slowness += (self._slower - 1) * fraction
        if self._host_free > self._now:
            fraction = min(1.0, (self._host_free - self._now) / seconds)
            slowness += (self._slower_beside_host - 1) * fraction
        return slowness

    def _wait(self, steps: Sequence[Step]) -> None:
        until = self._transfers.wait(self._now, [self._in_slot[s.slot] for s in steps])
        until += self._profile.wake_s[self._bits]
        self._waited = self._slept = True
        self.times[-1].activities["wait"] += until - self._now
        self._now = until

    def _start_host(self) -> float:
        """The time at which the host finishes its experts of this layer pass."""
        done = 0.0
        start_s = self._profile.host_start_s.get(self._bits, 0.0)
        if self._tiers:
            self._transfers.advance(self._now)  # they borrow records too
        for step in self._steps:
            if step.slot == ON_HOST:
                count = self._policy.tokens[step.expert.expert]
                begin = max(self._now + start_s, self._host_free)
                tier = self._tiers.get(step.bits)
                if tier is not None and not tier.borrow(step.expert):
                    begin += tier.read_s
                alone = at(self._profile.host_expert_s[step.bits], count)
                done = self._host_free = begin + alone * self._slower_beside_host
        return done

    def _load(self, expert: ExpertId, slot: int, bits: Bits, *, demanded: bool) -> None:
        size = self._record[bits]
        self._spend("policy", self._profile.submit_s)
        source, tier = self._sources[bits], self._tiers.get(bits)
        self._in_slot[slot] = self._transfers.submit(
            self._now, expert, slot, size, source, demanded=demanded, tier=tier
        )

    def _fetch(self, fetches: Sequence[Fetch]) -> None:
        for fetch in fetches:
            self._load(fetch.expert, fetch.slot, fetch.bits, demanded=False)
            self._prefetching[fetch.expert.layer].append(self._in_slot[fetch.slot])

    def _demote(self, layer: int) -> None:
        prefetching = self._prefetching.pop(layer, [])
        if not prefetching:
            return
        demanded = {step.expert for step in self._steps}
        for transfer in prefetching:
            if transfer.expert not in demanded and transfer.ready_at is None:
                self._transfers.demote(self._now, transfer)

    def _is_ready(self, step: Step) -> bool:
        return self._transfers.is_ready(self._now, self._in_slot[step.slot])
