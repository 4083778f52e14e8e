"""Plans micro-batches, prefetch depth and split before a run, and predicts the bottleneck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from engine.config.settings import EngineConfig
from engine.errors import ConfigError, InfeasibleError
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, at
from engine.memory.plan import resolve
from engine.memory.records import record_bytes_of

Bottleneck = Literal["transfer", "compute", "unknown"]
MOST_MICRO_BATCHES = 32


@dataclass(frozen=True)
class Planned:
    """The config to run; the resource that its layer passes wait for; the reason, in a sentence."""

    config: EngineConfig
    bottleneck: Bottleneck
    reason: str


class Plan(Protocol):
    """Adjusts a config to a measured machine."""

    def plan(
        self, config: EngineConfig, facts: ModelFacts, timings: ModelTimings | None
    ) -> Planned:
        """The config to run. timings: of this model on this machine, None if it was not
        profiled."""


class FixedPlan:
    """Keeps the config's own settings."""

    def plan(
        self, config: EngineConfig, facts: ModelFacts, timings: ModelTimings | None
    ) -> Planned:
        """Return the config unchanged."""
        return Planned(config, "unknown", "as the config says")


class IoComputePlan:
    """Enough micro-batches that computing a layer hides loading the next one.

    Klotski, arXiv 2502.06888, inequalities 4 to 7; the non-expert weights are resident here, so
    their transfers are zero. Expected demands assume that tokens route independently and evenly:
    more than trained routers demand, so the plan errs towards more micro-batches.
    """

    def plan(
        self, config: EngineConfig, facts: ModelFacts, timings: ModelTimings | None
    ) -> Planned:
        """The smallest batch.count that hides transfers, capped by memory; the prefetch depth
        that there is time for; the split by measured rates. Raises ConfigError if the machine
        was not profiled."""
        if timings is None:
            raise ConfigError(
                "plan.name = io_compute needs this model's timings on this machine: run `tune "
                "profile --model ...` first, or set plan.name to fixed"
            )
        most = _most_that_fit(config, facts)
        count, hidden = most, False
        for candidate in range(1, most + 1):
            work, load = _layer_times(config, facts, timings, candidate)
            if work >= load:
                count, hidden = candidate, True
                break
        work, load = _layer_times(config, facts, timings, count)
        overlay: dict[str, float | int] = {"batch.count": count}
        if config.prefetch.predictor != "none":
            overlay["prefetch.depth"] = 1 if hidden or count > 1 else max(1, config.prefetch.depth)
        if config.placement.name == "host_split" and timings.host_expert_s:
            overlay["placement.host_fraction"] = host_fraction(config, facts, timings)
        how = "hides" if hidden else "does not hide"
        reason = (
            f"{count} micro-batches: a layer computes for {work * 1e3:.2f} ms, which {how} "
            f"{load * 1e3:.2f} ms of transfers"
        )
        if not hidden:
            reason += f"; {most} is what memory allows (at most {MOST_MICRO_BATCHES} are planned)"
        return Planned(config.overlay(overlay), "compute" if hidden else "transfer", reason)


def host_fraction(config: EngineConfig, facts: ModelFacts, timings: ModelTimings) -> float:
    """Fraction of the misses that the host computes: c / (p + c) with the link's rate p and the
    host's rate c, in records per second, one token each."""
    record = record_bytes_of(config, facts, config.precision.bits)
    moved = timings.sources[config.precision.bits].rate(config.transfer.in_flight) / record
    computed = 1.0 / at(timings.host_expert_s[config.precision.bits], 1)
    return computed / (moved + computed)


def with_host_ratios(
    config: EngineConfig, facts: ModelFacts, timings: ModelTimings | None
) -> EngineConfig:
    """Sets placement.options.host_ratios of `earliest` by these timings; unchanged if it is set, or
    they do not know the host at this precision."""
    bits = config.precision.bits
    known = timings.host_expert_s.get(bits) if timings is not None else None
    if config.placement.name != "earliest" or config.placement.options or not known:
        return config
    source = timings.sources.get(bits) if timings is not None else None
    if source is None:
        return config
    moved_s = source.chunk_s + record_bytes_of(config, facts, bits) / source.rate(1)
    found = {str(tokens): round_ratio(seconds / moved_s) for tokens, seconds in known.items()}
    return config.overlay({"placement.options.host_ratios": found})


def round_ratio(ratio: float) -> float:
    """To three digits: what was measured is not known better, and configs stay readable."""
    return float(f"{ratio:.3g}")


def _most_that_fit(config: EngineConfig, facts: ModelFacts) -> int:
    """The largest batch.count that fits the budget with the fewest slots that run."""
    fitting = 1
    for count in range(1, MOST_MICRO_BATCHES + 1):
        try:
            resolve(config.overlay({"batch.count": count}), facts)
        except InfeasibleError:
            break
        fitting = count
    return fitting


def _layer_times(
    config: EngineConfig, facts: ModelFacts, timings: ModelTimings, count: int
) -> tuple[float, float]:
    """Seconds of compute and of transfers of one decode layer pass of `count` micro-batches."""
    resolved, memory = resolve(config.overlay({"batch.count": count}), facts)
    size, bits = config.batch.size, config.precision.bits
    tokens = count * size
    experts, chosen = facts.experts, facts.experts_per_token
    demanded = experts * (1 - (1 - chosen / experts) ** tokens)
    resident = 0.0
    if config.cache.eviction != "none":
        resident = memory.resident_fraction(facts.moe_layers * experts)
    missing = demanded * (1 - resident)
    each = max(1, round(tokens * chosen / max(1.0, demanded)))
    joined = timings.together and not config.compute.capture
    passes, entering = (1, tokens) if joined else (count, size)
    non_expert = passes * (at(timings.non_expert_s, entering) + at(timings.router_s, entering))
    work = (
        non_expert + demanded * at(timings.expert_s[bits], each) + at(timings.layer_s[bits], tokens)
    )
    rate = timings.sources[bits].rate(min(resolved.io.threads, resolved.transfer.in_flight))
    return work, missing * record_bytes_of(resolved, facts, bits) / rate
