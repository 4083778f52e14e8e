"""Timings for the precision of a run, and corrected by what runs took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from engine.facts.timings import Curve, ModelTimings, ReadyTimings, RoundedTimings

_FEW_TOKENS = 4  # up to which products wait for weights


def at_precision(
    timings: ModelTimings, non_expert_bits: int, activation_bits: int = 16
) -> ModelTimings:
    """Timings of a run whose layers outside the experts have these bits, and which multiplies codes
    by activations of these. Where such layers were not timed, a few tokens take what their weights'
    bytes take, many what they take at 16 bits."""
    if activation_bits == 8:
        timings = _with_rounded(timings)
    return _at_non_expert_bits(timings, non_expert_bits)


def _with_rounded(timings: ModelTimings) -> ModelTimings:
    rounded, ready = timings.rounded, timings.ready
    if rounded is None:
        return timings
    if ready is not None:
        ready = dataclasses.replace(
            ready,
            expert_s={**ready.expert_s, **rounded.ready_expert_s},
            coarser_non_expert_s={
                **ready.coarser_non_expert_s,
                **rounded.ready_coarser_non_expert_s,
            },
        )
    return dataclasses.replace(
        timings,
        expert_s={**timings.expert_s, **rounded.expert_s},
        coarser_non_expert_s={**timings.coarser_non_expert_s, **rounded.coarser_non_expert_s},
        ready=ready,
    )


def _at_non_expert_bits(timings: ModelTimings, bits: int) -> ModelTimings:
    ready = timings.ready
    if ready is not None:
        ready = dataclasses.replace(ready, non_expert_s=_at_bits(ready, bits))
    return dataclasses.replace(timings, non_expert_s=_at_bits(timings, bits), ready=ready)


def _at_bits(timings: ModelTimings | ReadyTimings, bits: int) -> Curve:
    if bits == 16:
        return timings.non_expert_s
    return timings.coarser_non_expert_s.get(bits) or {
        tokens: seconds * (bits / 16 if tokens <= _FEW_TOKENS else 1.0)
        for tokens, seconds in timings.non_expert_s.items()
    }


def scaled(curve: Curve, factor: float) -> dict[int, float]:
    return {tokens: seconds * factor for tokens, seconds in curve.items()}


def corrected(
    timings: ModelTimings, factors: Mapping[str, float], ready: Mapping[str, float] | None = None
) -> ModelTimings:
    """Timings with parts multiplied by factors. factors: of compute, non_expert, router, policy and
    other, as the engine's clock names them; parts not named stay unchanged. ready: those of layers
    that are passed without asking the policy."""

    def of(name: str) -> float:
        return factors.get(name, 1.0)

    passed, rounded = ready or {}, timings.rounded
    if rounded is not None:
        rounded = RoundedTimings(
            _all_scaled(rounded.expert_s, of("compute")),
            _all_scaled(rounded.coarser_non_expert_s, of("non_expert")),
            _all_scaled(rounded.ready_expert_s, passed.get("compute", 1.0)),
            _all_scaled(rounded.ready_coarser_non_expert_s, passed.get("non_expert", 1.0)),
        )
    return dataclasses.replace(
        timings,
        non_expert_s=scaled(timings.non_expert_s, of("non_expert")),
        coarser_non_expert_s=_all_scaled(timings.coarser_non_expert_s, of("non_expert")),
        router_s=scaled(timings.router_s, of("router")),
        policy_s=scaled(timings.policy_s, of("policy")),
        pass_s=scaled(timings.pass_s, of("other")),
        gate_lookahead_s=timings.gate_lookahead_s * of("policy"),
        submit_s=timings.submit_s * of("policy"),
        layer_s=_all_scaled(timings.layer_s, of("compute")),
        expert_s=_all_scaled(timings.expert_s, of("compute")),
        restart_s=scaled(timings.restart_s, of("compute")),
        restart_non_expert_s=timings.restart_non_expert_s * of("non_expert"),
        ready=timings.ready and _corrected_ready(timings.ready, passed),
        rounded=rounded,
    )


def with_longer_waits(timings: ModelTimings, part: str, seconds: float) -> ModelTimings:
    """Timings in which each wait makes compute or non_expert longer by so much more, or each
    transfer policy."""
    if part == "compute":
        longer = {bits: known + seconds for bits, known in timings.restart_s.items()}
        return dataclasses.replace(timings, restart_s=longer)
    if part == "non_expert":
        known = timings.restart_non_expert_s
        return dataclasses.replace(timings, restart_non_expert_s=known + seconds)
    return dataclasses.replace(timings, submit_s=timings.submit_s + seconds)


def _corrected_ready(ready: ReadyTimings, factors: Mapping[str, float]) -> ReadyTimings:
    non_expert, products = factors.get("non_expert", 1.0), factors.get("compute", 1.0)
    return ReadyTimings(
        scaled(ready.non_expert_s, non_expert),
        scaled(ready.policy_s, factors.get("policy", 1.0)),
        _all_scaled(ready.expert_s, products),
        _all_scaled(ready.coarser_non_expert_s, non_expert),
    )


def _all_scaled(curves: Mapping[int, Curve], factor: float) -> dict[int, dict[int, float]]:
    return {bits: scaled(curve, factor) for bits, curve in curves.items()}
