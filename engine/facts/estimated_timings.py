"""Estimates timings of a model from a machine profile, before the model itself is timed.

A first estimate for replays: a product costs a fixed part plus a part per weight, a read a fixed
part plus a part per byte, and each slows the other down. `tune profile --model` times the model
itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

import numpy as np

from engine.facts.emulated_machine import PREFIX, load_machine
from engine.facts.machine import MachineProfile
from engine.facts.model import ModelFacts
from engine.facts.timings import Curve, ModelTimings, RecordSource, at

_TOKENS = (1, 2, 4, 16, 64, 256)  # token counts that profiles time
_PROFILED_WEIGHTS, _SMALL_WEIGHTS = 1024 * 1024, 128 * 128
_CHUNK_BYTES = 1 << 20  # the default chunk size of a config
# Python overhead of a layer by tokens, as `tune profile` times it on a model whose products take
# little (docs/lab): a pass, a layer's non-expert weights, a router, a policy, gathering and
# summing, an expert; and starting a transfer, one gate look-ahead, waking an I/O thread.
_PASS_S = {1: 2.3e-4, 4: 3.2e-4, 256: 3.5e-4}
_NON_EXPERT_S = {1: 2.2e-4, 2: 3.1e-4, 16: 4.2e-4, 64: 4.9e-4, 256: 8e-4}
_ROUTER_S = {1: 1.9e-5, 2: 3.5e-5, 16: 5.4e-5, 64: 8.9e-5, 256: 2.5e-4}
_POLICY_S = {1: 2.6e-5, 2: 4.1e-5, 16: 9.6e-5, 64: 1.2e-4, 256: 2.7e-4}
_LAYER_S = {1: 4.1e-5, 2: 1.4e-4, 4: 1.6e-4, 16: 4e-4, 256: 5e-4}
_EXPERT_S = {1: 8e-6, 2: 1.4e-5, 256: 1.4e-5}
_SUBMIT_S, _SCORE_S, _WAKE_S = 5e-6, 4e-5, 4e-5


def profiled_timings(
    profile: MachineProfile, facts: ModelFacts, device: str, *, together: bool = False
) -> ModelTimings:
    """Estimated timings of this model from the machine's products, copies and reads.

    device: as the engine names it. Where it has memory of its own, records come over its link (of
    an emulated machine: as it is slowed), from a host tier that holds all; else from the disk.
    together: see ModelTimings.
    """
    matrices = [part.elements for part in facts.parts if part.kind == "matrix"]
    expert_s = {
        int(bits): _products(profile, int(bits), matrices, _EXPERT_S) for bits in facts.record_bytes
    }
    non_expert_weights = _non_expert_weights(facts) // max(1, facts.moe_layers)
    non_expert = {
        bits: _products(profile, bits, [non_expert_weights], _NON_EXPERT_S) for bits in (16, 8, 4)
    }
    emulated = load_machine(device.removeprefix(PREFIX)) if device.startswith(PREFIX) else None
    sources, contention = {}, {}
    for name, size in facts.record_bytes.items():
        bits = int(name)
        pieces = facts.pieces_16 if bits == 16 and facts.in_place_16 else 1
        chunk = min(size // pieces, _CHUNK_BYTES)
        contention[bits] = 1.0
        if emulated is not None:
            rate, latency = emulated.slowed_link_bytes_per_s, emulated.slowed_link_latency_s
            sources[bits] = RecordSource({1: rate}, latency, "queued", pieces)
        elif profile.link_bytes_per_s is not None:
            sources[bits] = RecordSource({1: profile.link_bytes_per_s}, 0.0, "queued", pieces)
        else:
            sources[bits] = RecordSource({2: _read_speed(profile, chunk)}, 0.0, "shared", pieces)
            contention[bits] = _slowdown(profile, chunk)
    none = dict.fromkeys(expert_s, 0.0)
    wake = dict.fromkeys(expert_s, _WAKE_S)
    return ModelTimings(
        model=facts.fingerprint,
        device=device,
        sources=sources,
        non_expert_s=non_expert.pop(16),
        coarser_non_expert_s=non_expert,
        router_s=_ROUTER_S,
        layer_s=dict.fromkeys(expert_s, _LAYER_S),
        expert_s=expert_s,
        pass_s=_PASS_S,
        policy_s=_POLICY_S,
        submit_s=_SUBMIT_S,
        gate_lookahead_s=_SCORE_S,
        wake_s=wake,
        restart_s=none,
        contention=contention,
        together=together,
        notes={"profiled": "from the machine's general speeds, not timed on this model"},
    )


def _non_expert_weights(facts: ModelFacts) -> int:
    """Weights outside the experts that a token is multiplied with: embeddings are only looked up,
    unless they are the head too."""
    linear = sum(m.rows * m.columns * m.occurrences for m in facts.non_expert_matrices)
    return linear or facts.non_expert_bytes // 2


def _products(profile: MachineProfile, bits: int, matrices: Sequence[int], beside: Curve) -> Curve:
    """Seconds by tokens of products with matrices of these weight counts. beside: further costs."""
    found = {}
    for tokens in sorted({*_TOKENS, *beside}):
        fixed_s, weight_s = _product(profile, bits, tokens)
        more = sum(max(0, weights - _SMALL_WEIGHTS) for weights in matrices)
        found[tokens] = at(beside, tokens) + len(matrices) * fixed_s + more * weight_s
    return found


def _product(profile: MachineProfile, bits: int, tokens: int) -> tuple[float, float]:
    """Seconds of a product with a small matrix, and the cost of each additional weight."""
    small, large = (
        {n: _kernel_s(kernels, bits, n) for n in _TOKENS if _kernel_s(kernels, bits, n)}
        for kernels in (profile.small_kernel_ms, profile.kernel_ms)
    )
    if not large:  # a profile without kernels: weights are read once
        return 0.0, bits / 8 / profile.memory_bytes_per_s
    fixed_s, whole_s = at(small, tokens), at(large, tokens)
    return fixed_s, max(0.0, whole_s - fixed_s) / (_PROFILED_WEIGHTS - _SMALL_WEIGHTS)


def _kernel_s(kernels: Mapping[str, float], bits: int, tokens: int) -> float:
    """Seconds of a product from the table; 0 if it was not timed."""
    return kernels.get(f"{bits}/{tokens}", kernels.get(f"16/{tokens}", 0.0)) / 1e3


def _read_speed(profile: MachineProfile, record_bytes: int) -> float:
    """Bytes per second of reads of this size, beside products if that was profiled. Between
    profiled sizes, and below the smallest, seconds lie on a line, since each read has a fixed
    cost besides its bytes."""
    profiled = profile.busy_read_bytes_per_s or profile.read_bytes_per_s
    speeds = {int(size): speed for size, speed in profiled.items()}
    if not speeds:
        return 1e9
    sizes = sorted(speeds)
    if record_bytes >= sizes[-1] or len(sizes) == 1:
        return speeds[min(sizes, key=lambda size: abs(size - record_bytes))]
    seconds = {size: size / speeds[size] for size in sizes}
    above = min(max(1, bisect_left(sizes, record_bytes)), len(sizes) - 1)
    low, high = sizes[above - 1], sizes[above]
    slope = (seconds[high] - seconds[low]) / (high - low)
    found = seconds[low] + slope * (record_bytes - low)
    # a noisy pair of sizes must not make a read cheaper than its bytes at full speed
    return record_bytes / max(found, record_bytes / max(speeds.values()))


def _slowdown(profile: MachineProfile, chunk_bytes: int) -> float:
    """Slowdown of products beside chunks of this size: linear in the logarithm of the size."""
    known = sorted((math.log(int(size)), value) for size, value in profile.read_slowdown.items())
    if not known:
        return 1.0
    sizes, values = zip(*known, strict=True)
    return float(np.interp(math.log(chunk_bytes), sizes, values))
