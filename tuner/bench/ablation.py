"""Ablations: a policy with one of its mechanisms switched off, everything else unchanged.

In: a policy, the base config, settings laid over both. Out: one row for each mechanism in which the
policy differs from the baseline. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.config.settings import EngineConfig
from tuner.definition.policies import PolicyFile

Mechanism = Literal[
    "predict", "evict", "allocate", "scope", "transfer", "order", "place", "precision", "batch"
]
MECHANISMS: tuple[Mechanism, ...] = get_args(Mechanism)
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Ablation:
    """The policy without `mechanism`. config: the config to run."""

    mechanism: Mechanism
    config: EngineConfig


def ablate(
    policy: PolicyFile, base: EngineConfig, settings: Settings | None = None
) -> tuple[Ablation, ...]:
    """One row for each mechanism that `policy` (under `settings`) switches on."""
    laid = {**policy.engine, **(settings or {})}
    whole = base.overlay(laid)
    found = []
    for mechanism in MECHANISMS:
        off = _OFF[mechanism](whole, laid)
        config = whole.overlay(off) if off else whole
        if config != whole:
            found.append(Ablation(mechanism, config))
    return tuple(found)


def _predict(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"prefetch.predictor": "none", "prefetch.depth": 0} if _prefetches(config) else None


def _evict(config: EngineConfig, laid: Settings) -> Settings | None:
    if not _keeps(config):
        return None  # without its eviction it would become a cache, which it is not
    off: dict[str, Any] = {"cache.eviction": "lru"}
    if config.cache.options.get("hold_predicted"):
        off["cache.options.hold_predicted"] = False
    return off


def _allocate(config: EngineConfig, laid: Settings) -> Settings | None:
    shared = config.cache.scope == "shared" or not _keeps(config)  # then nothing is allocated
    return None if shared else {"cache.allocation": "uniform"}


def _scope(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"cache.scope": "layer"} if _keeps(config) else None


def _transfer(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"transfer.queue": "fifo"} if _prefetches(config) else None


def _order(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"batch.order": "routed"} if "batch.order" in laid else None  # a default is no choice


def _place(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"placement.name": "device"}


def _precision(config: EngineConfig, laid: Settings) -> Settings | None:
    if config.precision.scheme == "uniform":
        return None
    return {"precision.scheme": "uniform", "precision.low_bits": 0}


def _batch(config: EngineConfig, laid: Settings) -> Settings | None:
    return {"batch.count": 1, "plan.name": "fixed"}


def _prefetches(config: EngineConfig) -> bool:
    return config.prefetch.predictor != "none" and config.prefetch.depth > 0


def _keeps(config: EngineConfig) -> bool:
    return config.cache.eviction != "none"


_OFF: dict[Mechanism, Callable[[EngineConfig, Settings], Settings | None]] = {
    "predict": _predict,
    "evict": _evict,
    "allocate": _allocate,
    "scope": _scope,
    "transfer": _transfer,
    "order": _order,
    "place": _place,
    "precision": _precision,
    "batch": _batch,
}
"""Settings that switch a mechanism off in a config; None if the config does not use it."""
