"""Measures how fast the host computes experts, next to how fast they move to the device."""

from __future__ import annotations

import time
from typing import Any

import torch

from engine.config.settings import EngineConfig
from engine.experts.host_compute import HostCompute
from engine.experts.transfer import TransferEngine
from engine.model.loader import LoadedModel
from engine.policy.batch_plan import round_ratio
from engine.types import ExpertId

_RECORDS = 32
_LIMIT_S = 5.0
_TOKENS = (1, 4, 16, 64, 256)
_TOGETHER = 4  # experts of a layer
_ENOUGH_S = 0.1  # of measuring the host: more tokens than this allows follow the last two


def with_measured_rates(
    config: EngineConfig,
    host: HostCompute,
    transfers: TransferEngine,
    slots: int,
    model: LoadedModel,
) -> EngineConfig:
    """Sets what placement.name needs to know of host and link and nobody gave."""
    placement = config.placement
    if placement.name == "host_split" and placement.host_fraction == "auto":
        fraction = measure_host_fraction(host, transfers, slots, model)
        return config.overlay({"placement.host_fraction": fraction})
    if placement.name == "earliest" and "host_ratios" not in placement.options:
        ratios = measure_host_ratios(host, transfers, slots, model)
        return config.overlay({"placement.options.host_ratios": ratios})
    return config


def measure_host_ratios(
    host: HostCompute, transfers: TransferEngine, slots: int, model: LoadedModel
) -> dict[str, float]:
    """Seconds of an expert on the host over seconds of its transfer, by tokens, each measured
    alone."""
    layer = model.layers[0]
    count = min(slots, layer.count, _RECORDS)
    bits = min(transfers.sources)
    experts = [ExpertId(0, number) for number in range(count)]
    started = time.perf_counter()
    for slot, expert in enumerate(experts):
        transfers.submit(expert, slot, bits, demanded=True)
    transfers.drain()
    moved_s = (time.perf_counter() - started) / count
    found: dict[str, float] = {}
    spent_s = 0.0
    for tokens in _TOKENS:
        if spent_s > _ENOUGH_S and len(found) > 1:
            break
        chosen = [(expert, bits) for expert in experts[:_TOGETHER]]
        x, index = _inputs(model, tokens), _all_choose(len(chosen), tokens)
        host.submit(layer.experts, chosen, x, index).result()  # the first one warms up
        started = time.perf_counter()
        host.submit(layer.experts, chosen, x, index).result()
        taken_s = time.perf_counter() - started
        spent_s += taken_s
        found[str(tokens)] = round_ratio(taken_s / len(chosen) / moved_s)
    return found


def measure_host_fraction(
    host: HostCompute, transfers: TransferEngine, slots: int, model: LoadedModel
) -> float:
    """Fraction of the misses that the host should compute: c / (p + c).

    p: records moved per second, c: records computed per second, both measured while both run
    (MoNDE's split as FreeToken states it).
    """
    layer = model.layers[0]
    count = min(slots, layer.count, _RECORDS)
    bits = min(transfers.sources)  # the same records on both sides
    x = _inputs(model, 1)
    started = time.perf_counter()
    experts = [ExpertId(0, number) for number in range(count)]
    computed = [
        host.submit(layer.experts, [(expert, bits)], x, torch.tensor([[expert.expert]]))
        for expert in experts
    ]
    moved = [
        transfers.submit(expert, slot, bits, demanded=True) for slot, expert in enumerate(experts)
    ]
    while True:
        host_done = sum(pending.done() for pending in computed)
        link_done = sum(transfer.read for transfer in moved)
        if count in (host_done, link_done) or time.perf_counter() - started > _LIMIT_S:
            break
        time.sleep(0.001)
    for pending in computed:
        pending.cancel()
    transfers.drain()
    return (host_done + 0.5) / (host_done + link_done + 1.0)


def _inputs(model: LoadedModel, tokens: int) -> torch.Tensor:
    """Hidden states of an expert, [tokens, D], zero."""
    config: Any = model.config.get_text_config()
    return torch.zeros(tokens, config.hidden_size, dtype=model.dtype)


def _all_choose(experts: int, tokens: int) -> torch.Tensor:
    """Every token chooses the first experts, int64 [tokens, experts]."""
    return torch.arange(experts).expand(tokens, experts).contiguous()
