"""Decisions: all that a policy decides over a trace, as a stream of numbers.

Decisions do not depend on time, so one stream serves every config that differs only in what its
records and parts cost: bits, non-expert weights, transfer, threads. sources/replay.h says how the
stream reads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.files import json_digest
from engine.memory.plan import Resolved
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.steps import Fetch, Step
from engine.precision.table import run_bits
from engine.trace.trace import TracePass
from engine.types import Bits, ExpertId

# What policies read of a config; of the cache, its slots stand for its bytes.
_READ = ("cache", "prefetch", "batch", "placement", "prefill")
_BEGIN_PASS, _GATE_ENTERED, _ROUTED, _LAYER_ROUTED, _END_PASS, _COUNT_ARRIVALS = range(6)
_NOBODY = -1


@dataclass(frozen=True)
class Decisions:
    """The stream of one policy. passes: in order; most_tokens: of all micro-batches of a pass;
    tokens: every number of tokens whose time is asked for; slots: at least one more than the
    highest."""

    policy: ExpertPolicy
    events: NDArray[np.int32]
    passes: tuple[tuple[int, TracePass], ...]
    tokens: tuple[int, ...]
    slots: int


def decision_key(resolved: Resolved, *, has_host: bool = False) -> str:
    """Equal for configs whose decisions over one trace are equal. has_host: whether the host may
    compute."""
    config, memory = resolved
    sections = config.to_dict()
    read = {name: sections[name] for name in _READ}
    read["cache"] = {k: v for k, v in read["cache"].items() if k != "expert_bytes"}
    read["compute"] = {"capture": config.compute.capture}  # micro-batches come in turn
    if config.precision.scheme != "uniform":
        read["precision"] = sections["precision"]
    slots = memory.slots_by_bits or memory.slots
    return json_digest([read, has_host, slots if isinstance(slots, int) else sorted(slots.items())])


class DecisionRecorder:
    """Implements Listener: writes every decision down."""

    def __init__(self, config: EngineConfig, facts: ModelFacts, policy: ExpertPolicy) -> None:
        self._policy = policy
        self._experts = facts.experts
        self._bits: dict[Bits, int] = {bits: i for i, bits in enumerate(run_bits(config))}
        self._events = array("i")
        self._passes: list[tuple[int, TracePass]] = []
        self._tokens: set[int] = {0}
        self._steps: list[Step] = []
        self._layer_tokens = 0
        self._last_slot = 0

    def decisions(self) -> Decisions:
        """All that was written."""
        events = np.frombuffer(self._events, dtype=np.int32).copy()
        tokens = tuple(sorted(self._tokens))
        return Decisions(self._policy, events, tuple(self._passes), tokens, self._last_slot + 1)

    def reset_arrivals(self) -> None:
        """Count the arrivals of what comes from here on."""
        self._events.append(_COUNT_ARRIVALS)

    def begin_pass(self, number: int, item: TracePass, fetches: Sequence[Fetch]) -> None:
        """See Listener."""
        self._passes.append((number, item))
        self._begin(_BEGIN_PASS, sum(item.tokens))
        self._events.append(item.phase == "decode")
        self._add_fetches(fetches)

    def gate_entered(self, layer: int, tokens: int, fetches: Sequence[Fetch]) -> None:
        """See Listener."""
        self._begin(_GATE_ENTERED, tokens)
        self._add_fetches(fetches)

    def routed(self, layer: int, tokens: int, steps: Sequence[Step]) -> None:
        """See Listener."""
        self._tokens.add(tokens)
        self._events.extend((_ROUTED, layer, tokens))
        self._layer_tokens = tokens + (self._layer_tokens if self._steps else 0)
        self._add_steps(steps)

    def layer_routed(self, layer: int, steps: Sequence[Step], fetches: Sequence[Fetch]) -> None:
        """See Listener."""
        self._events.extend((_LAYER_ROUTED, layer))
        self._add_steps(steps)
        self._add_fetches(fetches)
        counts = [self._policy.tokens[step.expert.expert] for step in self._steps]
        self._events.extend(counts)
        self._tokens.update(counts)
        self._tokens.add(self._layer_tokens)
        self._steps = []

    def end_pass(self) -> None:
        """See Listener."""
        self._events.append(_END_PASS)

    def _begin(self, kind: int, tokens: int) -> None:
        self._tokens.add(tokens)
        self._events.extend((kind, tokens))

    def _number(self, expert: ExpertId) -> int:
        return expert.layer * self._experts + expert.expert

    def _add_steps(self, steps: Sequence[Step]) -> None:
        self._events.append(len(steps))
        for expert, slot, bits, hit, after in steps:
            later = _NOBODY if after is None else self._number(after)
            self._events.extend((self._number(expert), slot, self._bits[bits], hit, later))
            self._last_slot = max(self._last_slot, slot)
        self._steps.extend(steps)

    def _add_fetches(self, fetches: Sequence[Fetch]) -> None:
        self._events.append(len(fetches))
        for expert, slot, bits in fetches:
            self._events.extend((expert.layer, self._number(expert), slot, self._bits[bits]))
            self._last_slot = max(self._last_slot, slot)
