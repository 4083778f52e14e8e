"""Estimates timings of a model from a machine profile, before the model itself is timed.

A first estimate for replays: a product costs a fixed part plus a part per weight, a read a fixed
part plus a part per byte, and each slows the other down. `tune profile --model` times the model
itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.facts.emulated_machine import PREFIX, EmulatedMachine, load_machine
from engine.facts.machine import MachineProfile
from engine.facts.model import ModelFacts
from engine.facts.timings import (
    Curve,
    ModelTimings,
    ReadyTimings,
    RecordSource,
    RoundedTimings,
    at,
)
from engine.native.library import products_name
from engine.types import ActivationBits, product_key

_TOKENS = (1, 2, 4, 16, 64, 256)  # token counts that profiles time
_PROFILED_WEIGHTS, _SMALL_WEIGHTS = 1024 * 1024, 128 * 128
_CHUNK_BYTES = 1 << 20  # the default chunk size of a config
_CACHES_BYTES = 1 << 25  # weights that the caches of most processors hold
_SCORE_S, _WAKE_S = 4e-5, 4e-5  # one gate look-ahead; waking an I/O thread
_HOST_START_S = 1e-4  # of handing a layer's experts to the host's thread and taking results back


@dataclass(frozen=True)
class _Overheads:
    """What takes time beside weights, by tokens, as it was timed on a model whose weights take
    little (docs/lab): of a pass, of a layer's non-expert weights, of its router, of the policy, of
    gathering and summing, of an expert; submit_s: of starting a transfer; restart_s,
    restart_non_expert_s: after a wait, of the first product and of what surrounds the experts of
    the next layer; in_one_call: whether these include what a product takes besides its
    weights."""

    pass_s: Curve
    non_expert_s: Curve
    router_s: Curve
    policy_s: Curve
    layer_s: Curve
    expert_s: Curve
    submit_s: float
    restart_s: float = 0.0
    restart_non_expert_s: float = 0.0
    in_one_call: bool = False


_TORCH = _Overheads(
    pass_s={1: 2.3e-4, 4: 3.2e-4, 256: 3.5e-4},
    non_expert_s={1: 2.2e-4, 2: 3.1e-4, 16: 4.2e-4, 64: 4.9e-4, 256: 8e-4},
    router_s={1: 1.9e-5, 2: 3.5e-5, 16: 5.4e-5, 64: 8.9e-5, 256: 2.5e-4},
    policy_s={1: 2.6e-5, 2: 4.1e-5, 16: 9.6e-5, 64: 1.2e-4, 256: 2.7e-4},
    layer_s={1: 4.1e-5, 2: 1.4e-4, 4: 1.6e-4, 16: 4e-4, 256: 5e-4},
    expert_s={1: 8e-6, 2: 1.4e-5, 256: 1.4e-5},
    submit_s=5e-6,
)
# With native products, an expert, the experts of a wave and what surrounds the experts are calls
# without Python between products, but with some before and after them. (docs/lab)
_NATIVE = _Overheads(
    pass_s={1: 7e-5, 4: 9e-5, 16: 1.7e-4, 256: 3.5e-4},
    non_expert_s={1: 3.4e-5, 2: 7.4e-5, 4: 1e-4, 16: 3e-4, 64: 4.9e-4, 256: 8e-4},
    router_s={1: 3e-6, 16: 2.8e-5, 64: 8.9e-5, 256: 2.5e-4},
    policy_s={1: 2.2e-5, 2: 4.1e-5, 16: 9.6e-5, 64: 1.2e-4, 256: 2.7e-4},
    layer_s={1: 4.2e-5, 2: 6.2e-5, 16: 7.5e-5, 256: 5e-4},
    expert_s={1: 2.3e-6, 2: 2.6e-6, 4: 3.5e-6, 256: 1.4e-5},
    submit_s=1.2e-5,
    restart_s=6e-5,
    restart_non_expert_s=2.8e-5,
    in_one_call=True,
)
# Layers that are passed without asking the policy: no Python between them either.
_READY = replace(
    _NATIVE,
    non_expert_s={1: 2.8e-5, 2: 4.3e-5, 4: 6.6e-5, 16: 2.2e-4},
    policy_s={1: 1.3e-5, 2: 2.2e-5, 4: 2.5e-5, 16: 4.2e-5},
)


def profiled_timings(
    profile: MachineProfile, facts: ModelFacts, device: str, *, together: bool = False
) -> ModelTimings:
    """Estimated timings of this model from the machine's products, copies and reads.

    device: as the engine names it. Where it has memory of its own, records of the host tier come
    over its link (of an emulated machine: as it is slowed), others from the disk, and the host may
    compute.
    together: see ModelTimings.
    """
    native = profile.products.startswith("native")
    beside = _NATIVE if native else _TORCH
    estimate = _Estimate(profile, facts)
    expert_s, non_expert = estimate.experts(beside), estimate.non_expert(beside)
    emulated = load_machine(device.removeprefix(PREFIX)) if device.startswith(PREFIX) else None
    sources, contention = {}, {}
    disk_sources = {}
    for name, size in facts.record_bytes.items():
        bits = int(name)
        pieces = facts.pieces_16 if bits == 16 and facts.in_place_16 else 1
        chunk = min(size // pieces, _CHUNK_BYTES)
        contention[bits] = 1.0
        disk = RecordSource({2: _read_speed(profile, chunk)}, 0.0, "shared", pieces)
        if emulated is not None:
            rate, latency = emulated.slowed_link_bytes_per_s, emulated.slowed_link_latency_s
            sources[bits] = RecordSource({1: rate}, latency, "queued", pieces)
            disk_sources[bits] = disk
        elif profile.link_bytes_per_s is not None:
            sources[bits] = RecordSource({1: profile.link_bytes_per_s}, 0.0, "queued", pieces)
            disk_sources[bits] = disk
        else:
            sources[bits] = disk
            contention[bits] = _slowdown(profile, chunk)
    ready, rounded = None, estimate.rounded(beside)
    if native and profile.link_bytes_per_s is None and emulated is None:
        of_ready = estimate.non_expert(_READY)
        ready = ReadyTimings(of_ready.pop(16), _READY.policy_s, estimate.experts(_READY), of_ready)
    wake = dict.fromkeys(expert_s, _WAKE_S)
    host_expert_s = _host_experts(profile, facts, emulated)
    return ModelTimings(
        model=facts.fingerprint,
        device=device,
        sources=sources,
        disk_sources=disk_sources,
        non_expert_s=non_expert.pop(16),
        coarser_non_expert_s=non_expert,
        router_s=beside.router_s,
        layer_s=dict.fromkeys(expert_s, beside.layer_s),
        expert_s=expert_s,
        pass_s=beside.pass_s,
        policy_s=beside.policy_s,
        submit_s=beside.submit_s,
        gate_lookahead_s=_SCORE_S,
        wake_s=wake,
        restart_s=dict.fromkeys(expert_s, beside.restart_s),
        contention=contention,
        host_expert_s=host_expert_s,
        host_start_s=dict.fromkeys(host_expert_s, _HOST_START_S),
        together=together,
        ready=ready,
        restart_non_expert_s=beside.restart_non_expert_s,
        rounded=rounded,
        notes={"profiled": "from the machine's general speeds, not timed on this model"},
    )


def _host_experts(
    profile: MachineProfile, facts: ModelFacts, emulated: EmulatedMachine | None
) -> dict[int, dict[int, float]]:
    """Seconds of an expert on the processor beside a device, by bits, then by its tokens; empty if
    there is none or it was not timed. An emulated machine's memory is slower than this one's."""
    if emulated is None and not profile.host_kernel_ms:
        return {}
    if profile.host_kernel_ms:
        large, small = profile.host_kernel_ms, profile.host_small_kernel_ms
        profile = replace(profile, kernel_ms=large, small_kernel_ms=small)
    beside = _NATIVE if products_name().startswith("native") else _TORCH
    found = _Estimate(profile, facts).experts(beside)
    if emulated is None:
        return found
    least = {
        int(bits): size / emulated.slowed_host_bytes_per_s
        for bits, size in facts.record_bytes.items()
    }
    return {
        bits: {tokens: max(seconds, least[bits]) for tokens, seconds in curve.items()}
        for bits, curve in found.items()
    }


@dataclass(frozen=True)
class _Estimate:
    """Of products of one model on one machine."""

    profile: MachineProfile
    facts: ModelFacts

    def experts(
        self, beside: _Overheads, activation_bits: ActivationBits = 16
    ) -> dict[int, dict[int, float]]:
        """Seconds of an expert, by bits, then by its tokens."""
        matrices = [part.elements for part in self.facts.parts if part.kind == "matrix"]
        found = {}
        for bits in map(int, self.facts.record_bytes):
            key = product_key(bits, activation_bits)
            found[bits] = self._products(key, matrices, beside.expert_s, beside)
        return found

    def non_expert(
        self, beside: _Overheads, activation_bits: ActivationBits = 16
    ) -> dict[int, dict[int, float]]:
        """Seconds of what surrounds the experts of a layer, by bits, then by tokens."""
        weights = _non_expert_weights(self.facts)
        layer = weights // max(1, self.facts.moe_layers)
        return {
            bits: self._products(
                product_key(bits, activation_bits), [layer], beside.non_expert_s, beside
            )
            for bits in (16, 8, 4)
        }

    def rounded(self, beside: _Overheads) -> RoundedTimings | None:
        """The same with activations of 8 bits; None if their products were not timed."""
        if f"{product_key(8, 8)}/1" not in self.profile.kernel_ms:
            return None
        found = [
            times
            for overheads in (beside, _READY)
            for times in (self.experts(overheads, 8), self.non_expert(overheads, 8))
        ]
        return RoundedTimings(*({b: s for b, s in one.items() if b != 16} for one in found))

    def _products(
        self, key: str, matrices: Sequence[int], curve: Curve, beside: _Overheads
    ) -> dict[int, float]:
        """Seconds by tokens of products with matrices of these weight counts, and of what `curve`
        says beside them. Weights that no cache holds take at least what memory takes for them."""
        experts = self.facts.experts * self.facts.moe_layers
        cached = min(self.facts.record_bytes.values()) * experts < _CACHES_BYTES
        least_s = 0.0 if cached else _bits_of(key) / 8 / self.profile.memory_bytes_per_s
        found = {}
        for tokens in sorted({*_TOKENS, *curve}):
            fixed_s, weight_s = self._product(key, tokens)
            if beside.in_one_call:
                fixed_s, weight_s = 0.0, max(weight_s, least_s)
            more = sum(max(0, weights - _SMALL_WEIGHTS) for weights in matrices)
            found[tokens] = at(curve, tokens) + len(matrices) * fixed_s + more * weight_s
        return found

    def _product(self, key: str, tokens: int) -> tuple[float, float]:
        """Seconds of a product with a small matrix, and the cost of each additional weight."""
        small, large = (
            {n: _kernel_s(kernels, key, n) for n in _TOKENS if _kernel_s(kernels, key, n)}
            for kernels in (self.profile.small_kernel_ms, self.profile.kernel_ms)
        )
        if not large:  # a profile without kernels: weights are read once
            return 0.0, _bits_of(key) / 8 / self.profile.memory_bytes_per_s
        fixed_s, whole_s = at(small, tokens), at(large, tokens)
        return fixed_s, max(0.0, whole_s - fixed_s) / (_PROFILED_WEIGHTS - _SMALL_WEIGHTS)


def _non_expert_weights(facts: ModelFacts) -> int:
    """Weights outside the experts that a token is multiplied with: embeddings are only looked up,
    unless they are the head too."""
    linear = sum(m.rows * m.columns * m.occurrences for m in facts.non_expert_matrices)
    return linear or facts.non_expert_bytes // 2


def _bits_of(key: str) -> int:
    return int(key.partition("a")[0])


def _kernel_s(kernels: Mapping[str, float], key: str, tokens: int) -> float:
    """Seconds of a product (product_key) from the table; 0 if it was not timed."""
    known = (kernels.get(f"{name}/{tokens}") for name in (key, str(_bits_of(key)), "16"))
    return next((ms for ms in known if ms is not None), 0.0) / 1e3


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
