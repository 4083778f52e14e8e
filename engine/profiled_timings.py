"""Timings of a model from a machine's general speeds, before anything of the model was timed.

A first guess for replays: products scale with their weights, the dense part with its bytes, reads
with the record size. `tune profile --model` measures the same things on the model itself.
"""

from __future__ import annotations

from bisect import bisect_left

from engine.emulation import PREFIX, load_machine
from engine.protocol import MachineProfile, ModelFacts
from engine.timings import Curve, Medium, ModelTimings

_TOKENS = (1, 4, 16, 64, 256)  # what profiles time
_PROFILED_WEIGHTS = 1024 * 1024
# Python around a layer, as commonly seen (docs/lab.md): a pass, a router, a policy, an expert; and
# starting a transfer, asking a gate, waking an I/O thread.
_PASS_S, _ROUTER_S, _POLICY_S, _LAYER_S, _EXPERT_S = 1e-3, 1.5e-4, 1.5e-4, 5e-5, 3e-5
_SUBMIT_S, _SCORE_S, _WAKE_S = 1e-5, 1e-4, 4e-5


def profiled_timings(profile: MachineProfile, facts: ModelFacts, device: str) -> ModelTimings:
    """What the machine's products, copies and reads make of this model.

    device: as the engine names it; an emulated one takes its machine's slowed link.
    """
    weights = sum(part.elements for part in facts.parts)
    expert_s = {
        int(bits): _products(profile, int(bits), weights, _EXPERT_S) for bits in facts.record_bytes
    }
    dense_weights = facts.dense_bytes / 2 / max(1, facts.moe_layers)
    dense = _products(profile, 16, dense_weights, _ROUTER_S)
    emulated = load_machine(device.removeprefix(PREFIX)) if device.startswith(PREFIX) else None
    media = {}
    for bits, size in facts.record_bytes.items():
        if emulated is not None:
            rate, latency = emulated.slowed_link_bytes_per_s, emulated.slowed_link_latency_s
            media[int(bits)] = Medium({1: rate}, latency, "queued")
        elif profile.link_bytes_per_s is not None:
            media[int(bits)] = Medium({1: profile.link_bytes_per_s}, 1e-5, "queued")
        else:
            media[int(bits)] = Medium({2: _read_speed(profile, size)}, 0.0, "shared")
    one = dict.fromkeys(expert_s, 1.0)
    none = dict.fromkeys(expert_s, 0.0)
    wake = dict.fromkeys(expert_s, _WAKE_S)
    return ModelTimings(
        model=facts.fingerprint,
        device=device,
        media=media,
        dense_s=dense,
        router_s=dict.fromkeys(_TOKENS, _ROUTER_S),
        layer_s={bits: dict.fromkeys(_TOKENS, _LAYER_S) for bits in expert_s},
        expert_s=expert_s,
        pass_s=dict.fromkeys(_TOKENS, _PASS_S),
        policy_s=dict.fromkeys(_TOKENS, _POLICY_S),
        submit_s=_SUBMIT_S,
        score_s=_SCORE_S,
        wake_s=wake,
        restart_s=none,
        contention=one,
        notes={"profiled": "from the machine's general speeds, not timed on this model"},
    )


def _products(profile: MachineProfile, bits: int, weights: float, beside_s: float) -> Curve:
    """Seconds by tokens of products with so many weights."""
    scale = weights / _PROFILED_WEIGHTS
    found = {}
    for tokens in _TOKENS:
        timed = profile.kernel_ms.get(f"{bits}/{tokens}", profile.kernel_ms.get(f"16/{tokens}"))
        if timed is None:  # a profile without kernels: weights are read once
            timed = weights * bits / 8 / profile.memory_bytes_per_s * 1e3 / scale
        found[tokens] = beside_s + timed / 1e3 * scale
    return found


def _read_speed(profile: MachineProfile, record_bytes: int) -> float:
    """Of records of this size: between profiled sizes, and below the smallest, seconds lie on a
    line, since each read costs a fixed part beside its bytes."""
    speeds = {int(size): speed for size, speed in profile.read_bytes_per_s.items()}
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
