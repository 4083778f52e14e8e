"""Times single experts of a model on its device and on the host beside it, by tokens."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.experts.kernels.crossover import known_crossovers
from engine.experts.kernels.grouped.experts import GroupedExperts
from engine.facts.timings import ModelTimings, RoundedTimings
from engine.native.library import multiplies_bytes
from engine.profile.fit import configure_plainly
from engine.run.configuration import multiplier_of
from engine.run.engine import Engine
from engine.run.moe_layers import expert_output
from engine.types import Bits

EXPERT_TOKENS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROW = 4  # experts beside the first of those that are timed together


def time_experts(engine: Engine) -> dict[int, float]:
    """Seconds of one expert by tokens, as the runtime computes it. Each call uses another expert,
    so that its weights come from memory and not from a processor cache."""
    live = engine.live
    record = live.store.record
    bits = record.layout.bits
    if live.grouped is not None and bits in live.grouped.most_tokens:
        return _time_grouped(engine, live.grouped, bits)
    support = engine.kernel_support(live.config, bits)
    rounding = live.config.precision.activation_bits
    crossovers = known_crossovers(engine.cache_folder, engine.device.torch_device, rounding)
    multiply = multiplier_of(live.config, record, support, crossovers)
    module = engine.model.layers[0].experts
    views = [live.slots.view(slot, bits) for slot in range(live.slots.count)]
    turn = itertools.cycle(views)

    generator = torch.Generator().manual_seed(1)
    chosen = engine.facts.experts_per_token
    rows = max(EXPERT_TOKENS)
    out = torch.zeros(
        rows * chosen,
        engine.facts.hidden_size,
        dtype=engine.model.dtype,
        device=engine.device.torch_device,
    )
    places = {
        n: torch.randperm(rows * chosen, generator=generator)[:n].sort().values.to(out.device)
        for n in EXPERT_TOKENS
    }

    def run(x: torch.Tensor) -> None:
        """Compute as the runtime does: gather the tokens, multiply, scatter the results."""
        view, tokens = next(turn), x.shape[0]
        if tokens == 1:
            out[0].copy_(expert_output(module, multiply, view, x)[0])
        else:
            place = places[tokens]
            y = expert_output(module, multiply, view, out[place // chosen])
            out[place] = y.to(out.dtype)
        engine.device.synchronize()

    return _time_by_tokens(engine, run)


def with_rounded(
    timings: ModelTimings, engine: Engine, base: EngineConfig, bits: Bits
) -> ModelTimings:
    """Add the times of one expert with activations of 8 bits; unchanged where these are not
    multiplied as bytes."""
    if bits == 16 or not engine.device.is_host_memory or not multiplies_bytes():
        return timings
    configure_plainly(engine, base, {"precision.bits": bits, "precision.activation_bits": 8})
    curve = time_experts(engine)
    known = timings.expert_s[bits]
    ready: dict[int, dict[int, float]] = {}
    if timings.ready is not None:
        passed = timings.ready.expert_s[bits]
        ready = {bits: {n: seconds * passed[n] / known[n] for n, seconds in curve.items()}}
    return replace(timings, rounded=RoundedTimings({bits: curve}, ready_expert_s=ready))


def _time_grouped(engine: Engine, grouped: GroupedExperts, bits: Bits) -> dict[int, float]:
    """As time_experts, where those of a layer are launched together: what each of several takes
    more than the first. What the launches take belongs to gathering."""
    slots, place = engine.live.slots, engine.device.torch_device
    several = min(1 + ROW, slots.count, engine.facts.experts)
    turn = itertools.cycle(range(slots.count))

    def run(x: torch.Tensor, count: int) -> None:
        index = torch.arange(count, device=place).expand(x.shape[0], count).contiguous()
        weights = torch.ones(x.shape[0], count, dtype=x.dtype, device=place)
        out = x.new_empty(index.numel(), x.shape[1])
        addresses = {expert: slots.address(next(turn)) for expert in range(count)}
        grouped.begin(index)
        grouped.run(bits, addresses, x, index, out)
        grouped.combine(out, weights)
        engine.device.synchronize()

    one = _time_by_tokens(engine, lambda x: run(x, 1))
    more = _time_by_tokens(engine, lambda x: run(x, several))
    return {n: max(1e-6, (more[n] - one[n]) / max(1, several - 1)) for n in one}


def with_host(
    timings: ModelTimings, engine: Engine, base: EngineConfig, bits: Bits
) -> ModelTimings:
    """Add the times of one expert on the host; unchanged if device and host are one memory.

    A single expert and several in a row are timed: the difference is the time of an expert, the
    rest is the cost of handing over.
    """
    if engine.device.is_host_memory:
        return timings
    try:
        configure_plainly(engine, base, {"precision.bits": bits, "placement.name": "host_below"})
    except InfeasibleError:
        return timings
    host = engine.live.host
    if host is None:
        return timings
    module = engine.model.layers[0].experts
    layer = [expert for expert in engine.live.store.experts if expert.layer == 0]
    turn = itertools.cycle(layer)

    def run(x: torch.Tensor, count: int) -> None:
        chosen = [next(turn) for _ in range(count)]
        index = torch.tensor([one.expert for one in chosen]).expand(x.shape[0], count)
        host.submit(module, [(one, bits) for one in chosen], x.cpu(), index).result()

    alone = _time_by_tokens(engine, lambda x: run(x, 1))
    several = _time_by_tokens(engine, lambda x: run(x, 1 + ROW))
    expert_s = {n: max(1e-6, (several[n] - alone[n]) / ROW) for n in alone}
    start_s = statistics.median(max(0.0, alone[n] - expert_s[n]) for n in alone)
    return replace(timings, host_expert_s={bits: expert_s}, host_start_s={bits: start_s})


def _time_by_tokens(engine: Engine, run: Callable[[torch.Tensor], None]) -> dict[int, float]:
    found: dict[int, float] = {}
    hidden = engine.facts.hidden_size
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for tokens in EXPERT_TOKENS:
            x = torch.randn(tokens, hidden, generator=generator)
            x = x.to(engine.device.torch_device, engine.model.dtype)
            run(x)
            seconds: list[float] = []
            while len(seconds) < 9 and (len(seconds) < 3 or sum(seconds) < 0.3):
                started = time.perf_counter()
                run(x)
                seconds.append(time.perf_counter() - started)
            found[tokens] = statistics.median(seconds)
    return found
