"""Times of the parts of a forward pass for one model on one machine: for replay and plans.

Measured by the worker's `calibrate` once for a model, machine and device, or derived from an
emulated machine's published figures. Values only; converts to JSON and back.
"""

from __future__ import annotations

import dataclasses
import json
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.derived.file import (
    CONTENT_ERRORS,
    DerivedKind,
    load_json,
    read_named,
    save_json,
)
from engine.errors import StorageError, UnreadableError, UsageError
from engine.inputs.typed import check_types
from engine.native.library import products_name

TIMINGS = DerivedKind(
    "file of timings",
    3,
    "`tune profile --model` measures them again, else they are estimated",
)

Curve = Mapping[int, float]
"""Seconds by number of tokens, measured at some numbers."""


@dataclass(frozen=True)
class RecordSource:
    """Where records come from: the disk, or the link from the host tier.

    bytes_per_s: of all chunks in flight together, by their number; chunk_s: fixed cost of a chunk;
    sharing: chunks in flight share the rate (a disk), or are served one after the other (a link,
    which a record crosses in one chunk); extents: pieces of a record, none of which shares a chunk
    with another (16-bit records read in place have several).
    """

    bytes_per_s: Mapping[int, float]
    chunk_s: float
    sharing: Literal["shared", "queued"]
    extents: int = 1

    def chunks(self, size_bytes: int, chunk_bytes: int) -> int:
        """Number of chunks of a record of this size."""
        if self.sharing == "queued":
            return 1
        return self.extents * max(1, -(-size_bytes // (self.extents * chunk_bytes)))

    def rate(self, in_flight: int) -> float:
        """Bytes per second of this many chunks together; the nearest measured number if not
        measured."""
        known = sorted(self.bytes_per_s)
        nearest = min(known, key=lambda n: (abs(n - in_flight), n))
        return self.bytes_per_s[nearest]


@dataclass(frozen=True)
class ReadyTimings:
    """Times of a layer whose decoded tokens find all experts there, where native code goes through
    several such layers without asking the policy (engine.run.native_pass). As in ModelTimings:
    non_expert_s, with the router; coarser_non_expert_s; policy_s; expert_s."""

    non_expert_s: Curve
    policy_s: Curve
    expert_s: Mapping[int, Curve]
    coarser_non_expert_s: Mapping[int, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundedTimings:
    """Times of products with activations of 8 bits: expert_s and coarser_non_expert_s as in
    ModelTimings, ready_* as in ReadyTimings. What is missing takes as long as with others."""

    expert_s: Mapping[int, Curve]
    coarser_non_expert_s: Mapping[int, Curve] = field(default_factory=dict)
    ready_expert_s: Mapping[int, Curve] = field(default_factory=dict)
    ready_coarser_non_expert_s: Mapping[int, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelTimings:
    """Times of one model on one device, in seconds.

    sources: record sources, by bits, of records that the host tier holds, if there is one;
    disk_sources: of those that it does not hold, by bits, empty if there is none or nobody timed
    them; non_expert_s, router_s: of one layer and micro-batch, by its
    tokens, the former with weights of 16 bits; coarser_non_expert_s: with fewer, by bits, if
    timed; layer_s: gathering and summing of one layer pass, by bits, then by tokens of all
    micro-batches; expert_s: of one expert, by bits, then by its tokens; policy_s: of one layer and
    micro-batch without a predictor, by its tokens; submit_s: of starting one transfer;
    gate_lookahead_s: of the gate look-ahead at one gate; pass_s: of a whole pass except its layers,
    by tokens.

    restart_non_expert_s: how much longer what surrounds the experts takes after a layer that
    waited.

    By bits: wake_s, from an arrival to compute; restart_s, how much longer the first product after
    a wait takes; contention, the slowdown factor of compute while chunks are moving (1: none).
    Empty if there is no host: host_expert_s, of one expert there, by bits, then by its tokens;
    host_start_s, of handing it a layer's experts; host_contention, the slowdown factor of device
    and host compute while both run. together: whether decoded tokens of all micro-batches pass what
    surrounds the experts at once. ready: of layers that are passed without asking the policy; None:
    there are none, or the other times are those of all layers together. rounded: of products with
    activations of 8 bits; None: they were not timed.
    """

    model: str
    device: str
    sources: Mapping[int, RecordSource]
    non_expert_s: Curve
    router_s: Curve
    layer_s: Mapping[int, Curve]
    expert_s: Mapping[int, Curve]
    pass_s: Curve
    policy_s: Curve
    submit_s: float
    gate_lookahead_s: float
    wake_s: Mapping[int, float]
    restart_s: Mapping[int, float]
    contention: Mapping[int, float]
    host_expert_s: Mapping[int, Curve] = field(default_factory=dict)
    host_start_s: Mapping[int, float] = field(default_factory=dict)
    host_contention: Mapping[int, float] = field(default_factory=dict)
    coarser_non_expert_s: Mapping[int, Curve] = field(default_factory=dict)
    together: bool = False
    ready: ReadyTimings | None = None
    restart_non_expert_s: float = 0.0
    rounded: RoundedTimings | None = None
    disk_sources: Mapping[int, RecordSource] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timed_bits(self) -> frozenset[int]:
        """The precisions of experts of which everything was timed."""
        by_bits = [self.layer_s, self.sources, self.wake_s, self.restart_s, self.contention]
        by_bits += [] if self.ready is None else [self.ready.expert_s]
        return frozenset(self.expert_s).intersection(*by_bits)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelTimings:
        """Inverse of to_json (JSON turns integer keys into text)."""
        values = dict(data)
        values.setdefault("disk_sources", {})  # of an earlier release
        for name in ("sources", "disk_sources"):
            values[name] = {
                int(bits): RecordSource(**{**source, "bytes_per_s": _curve(source["bytes_per_s"])})
                for bits, source in values[name].items()
            }
        for name in ("non_expert_s", "router_s", "policy_s", "pass_s"):
            values[name] = _curve(values[name])
        for name in ("wake_s", "restart_s", "contention", "host_start_s", "host_contention"):
            values[name] = _curve(values[name])
        values.setdefault("coarser_non_expert_s", {})  # of an earlier release
        for name in ("expert_s", "layer_s", "host_expert_s", "coarser_non_expert_s"):
            values[name] = _curves(values[name])
        if values.get("ready") is not None:
            values["ready"] = _ready(values["ready"])
        if values.get("rounded") is not None:
            curves = values["rounded"].items()
            values["rounded"] = RoundedTimings(**{name: _curves(own) for name, own in curves})
        found = cls(**values)
        check_types(found)
        _check_times(found)
        return found


def timings_path(folder: Path, machine: str, model: str, device: str, threads: int = 0) -> Path:
    """The path of stored timings. folder: the cache folder; machine, model: fingerprints; threads:
    of the products (cpu.threads). The products are part of the name: what others took says nothing
    of these."""
    name = f"{model}-{device.replace(':', '-')}-{products_name(threads)}.json"
    return folder / "timings" / machine / name


def save_timings(timings: ModelTimings, path: Path) -> None:
    """Write atomically. Raises StorageError."""
    try:
        save_json(path, TIMINGS, timings.to_json())
    except OSError as error:
        raise StorageError(f"timings cannot be kept in {path}: {error.strerror}") from None


def load_timings(path: Path) -> ModelTimings | None:
    """Stored timings, None if there are none or after damaged ones were dropped."""
    return load_json(path, TIMINGS, ModelTimings.from_json)


def read_timings(path: Path) -> ModelTimings:
    """Timings in a file that the user names, which is never removed. Raises UsageError if it is
    missing, StorageError if it holds none."""
    try:
        return ModelTimings.from_json(json.loads(read_named(path, TIMINGS)))
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: measure with `tune profile --model`") from None
    except UnreadableError as error:
        why = error.reason
    except CONTENT_ERRORS as error:
        why = f"{type(error).__name__}: {error!s:.200}"
    raise StorageError(
        f"{path} holds no timings of this release ({why}): measure them again with `tune profile`"
    )


def at(curve: Curve, tokens: int) -> float:
    """Seconds at this number of tokens, none at 0: interpolated linearly between measured ones,
    beyond them by the slope of the last two (never below the nearest measured)."""
    known = sorted(curve)
    if not known or not tokens:
        return 0.0
    place = bisect_left(known, tokens)
    if place < len(known) and known[place] == tokens:
        return curve[tokens]
    if place == 0 or len(known) == 1:
        return curve[known[0] if place == 0 else known[-1]]
    low, high = (known[place - 1], known[place]) if place < len(known) else (known[-2], known[-1])
    slope = (curve[high] - curve[low]) / (high - low)
    found = curve[low] + slope * (tokens - low)
    return max(found, curve[high]) if tokens > high else found


def _ready(data: Mapping[str, Any]) -> ReadyTimings:
    values: dict[str, Any] = {}
    for name, curve in data.items():
        by_bits = name in ("expert_s", "coarser_non_expert_s")
        values[name] = _curves(curve) if by_bits else _curve(curve)
    return ReadyTimings(**values)


def _curves(data: Mapping[Any, Any]) -> dict[int, dict[int, float]]:
    return {int(bits): _curve(curve) for bits, curve in data.items()}


def _curve(data: Mapping[Any, Any]) -> dict[int, float]:
    found = {int(key): float(value) for key, value in data.items()}
    if not all(math.isfinite(value) for value in found.values()):
        raise ValueError("a time is not finite")
    return found


def _check_times(timings: ModelTimings) -> None:
    """Raise ValueError for times and speeds that nothing has."""
    sources = [*timings.sources.values(), *timings.disk_sources.values()]
    speeds = [speed for source in sources for speed in source.bytes_per_s.values()]
    if any(speed <= 0 for speed in speeds) or not all(source.bytes_per_s for source in sources):
        raise ValueError("a source has no speed")
    if any(source.extents < 1 for source in sources):
        raise ValueError("a source has no extents")
    single = (
        timings.submit_s,
        timings.gate_lookahead_s,
        timings.restart_non_expert_s,
        *(source.chunk_s for source in sources),
    )
    curves = [timings.non_expert_s, timings.router_s, timings.pass_s, timings.policy_s]
    by_bits = [timings.expert_s, timings.host_expert_s, timings.coarser_non_expert_s]
    experts = [*timings.expert_s.values(), *timings.host_expert_s.values()]
    if timings.ready is not None:
        curves += [timings.ready.non_expert_s, timings.ready.policy_s]
        by_bits += [timings.ready.expert_s, timings.ready.coarser_non_expert_s]
        experts += timings.ready.expert_s.values()
    if timings.rounded is not None:
        rounded = vars(timings.rounded).values()
        by_bits += rounded
        experts += [curve for known in rounded for curve in known.values()]
    curves += [curve for curves in by_bits for curve in curves.values()]
    # what gathering takes is a difference, which may lie below zero
    gathering = [time for curve in timings.layer_s.values() for time in curve.values()]
    factors = (timings.wake_s, timings.restart_s, timings.contention)
    times = [*single, *(time for curve in (*curves, *factors) for time in curve.values())]
    if not all(0 <= time < math.inf for time in times) or not all(map(math.isfinite, gathering)):
        raise ValueError("a time is no time")
    if not all((*curves, *timings.layer_s.values())):
        raise ValueError("a part was not timed")
    if any(time == 0 for curve in experts for time in curve.values()):
        raise ValueError("an expert takes no time")
