"""Compares the routing of workloads: `python -m experiments.run compare_workloads TRACE TRACE ...`.

In: traces of one model, one for each workload, recorded sequence by sequence with `tune trace`.
Out: tables of how far expert popularity differs between workloads, beside how far two halves of one
workload's prompts differ (the yardstick); how soon experts are used again; what the best config of
one workload loses on another, replayed on a machine's published figures.

Letters: N tokens, L MoE layers, K chosen experts, E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from engine.config.settings import EngineConfig, base_config
from engine.trace.trace import Trace, load_trace
from tuner.replay.predict import facts_of, longest, replay_configs, timings_for

SPLITS = 20  # into random halves
PAIRS = 100  # of prompts
SHARE = "25%"  # of the experts in the cache that is replayed
EVICTIONS, DEPTHS = ("lru", "lfu", "arc", "p_freq"), (0, 1)
Floats = NDArray[np.float64]


def popularity(experts: NDArray[np.int16], count: int) -> Floats:
    """The fraction of each layer's choices that falls on each expert, [L, E]."""
    layers = experts.shape[1]
    counts = np.zeros((layers, count))
    for layer in range(layers):
        chosen = experts[:, layer].reshape(-1)  # [N * K]
        counts[layer] = np.bincount(chosen[chosen >= 0], minlength=count)
    return counts / counts.sum(1, keepdims=True)


def divergence(one: Floats, other: Floats) -> float:
    """The Jensen-Shannon divergence in bits, averaged over layers: 0 equal, 1 disjoint."""
    mean = (one + other) / 2
    return float(np.mean((_relative(one, mean) + _relative(other, mean)) / 2))


def common(one: Floats, other: Floats) -> float:
    """The fraction of the most popular quarter of the experts that is the same, over layers."""
    most = one.shape[1] // 4
    tops = [np.argsort(-side, axis=1, kind="stable")[:, :most] for side in (one, other)]
    return float(np.mean([len(set(a) & set(b)) / most for a, b in zip(*tops, strict=True)]))


def held(pinned: Floats, used: Floats) -> float:
    """The fraction of choices that falls on the other's most popular quarter of the experts."""
    most = pinned.shape[1] // 4
    tops = np.argsort(-pinned, axis=1, kind="stable")[:, :most]
    return float(np.take_along_axis(used, tops, 1).sum(1).mean())


def reuse_distances(trace: Trace) -> NDArray[np.int64]:
    """For each demand of decoding, how many other experts of its layer were used since its last
    use; the number of experts for a first use."""
    found: list[int] = []
    count = facts_of(trace).experts
    for layer in range(trace.layers):
        recent: list[int] = []  # the latest last
        for number, item in enumerate(trace.passes):
            wanted = sorted(trace.demands(number, layer))
            if item.phase == "decode":
                places = {expert: len(recent) - place for place, expert in enumerate(recent)}
                found += [places.get(expert, count + 1) - 1 for expert in wanted]
            recent = [expert for expert in recent if expert not in set(wanted)] + wanted
    return np.array(found)


def token_rows(trace: Trace) -> dict[int, NDArray[np.int64]]:
    """The rows of each sequence, by its number."""
    rows: dict[int, list[int]] = {}
    for item in trace.passes:
        rows.setdefault(item.group, []).extend(range(item.first, item.first + sum(item.tokens)))
    return {group: np.array(numbers) for group, numbers in rows.items()}


def between(
    one: Trace, other: Trace, tokens: int, measure: Callable[[Floats, Floats], float]
) -> tuple[float, float]:
    """Mean and standard deviation of a measure between random halves of the prompts of two traces,
    or the two halves of the same one; as many tokens of each half, since few differ more."""
    random, found = np.random.default_rng(0), []
    count = facts_of(one).experts
    for _ in range(SPLITS):
        left, rest = _halves(one, random)
        right = rest if one is other else _halves(other, random)[0]
        sides = [
            popularity(trace.experts[random.choice(rows, tokens, replace=False)], count)
            for trace, rows in ((one, left), (other, right))
        ]
        found.append(measure(sides[0], sides[1]))
    return float(np.mean(found)), float(np.std(found))


def between_prompts(one: Trace, other: Trace, tokens: int) -> tuple[float, float]:
    """Mean and standard deviation of the divergence of single prompts, two different ones."""
    random, found = np.random.default_rng(0), []
    count = facts_of(one).experts
    sequences = [list(token_rows(trace).values()) for trace in (one, other)]
    for _ in range(PAIRS):
        left = int(random.integers(len(sequences[0])))
        right = int(random.integers(len(sequences[1])))
        if one is other and left == right:
            continue
        sides = [
            popularity(trace.experts[random.choice(rows, tokens, replace=False)], count)
            for trace, rows in ((one, sequences[0][left]), (other, sequences[1][right]))
        ]
        found.append(divergence(sides[0], sides[1]))
    return float(np.mean(found)), float(np.std(found))


def replayed(traces: Mapping[str, Trace], machine: str, share: str) -> dict[str, dict[str, float]]:
    """Predicted tokens/s of each config on each workload, at 16 bits with this cache."""
    speeds: dict[str, dict[str, float]] = {}
    for name, trace in traces.items():
        facts = facts_of(trace)
        timings = timings_for(facts, machine)
        base = base_config(timings.device, longest(trace)).overlay({"cache.expert_bytes": share})
        rows = replay_configs(_configs(base), facts, trace, timings, warm_groups=1)
        for row in rows:
            if row.error is None:
                speeds.setdefault(row.name, {})[name] = row.metrics["decode_tps"]
    return speeds


def losses(speeds: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> list[list[float]]:
    """For the best config of each workload (rows), the fraction of the best speed that it loses on
    each workload (columns)."""
    best = {name: max(speeds, key=lambda config: speeds[config][name]) for name in names}
    return [
        [1 - speeds[best[tuned]][name] / speeds[best[name]][name] for name in names]
        for tuned in names
    ]


def main(
    files: Annotated[list[Path], typer.Argument(help="Traces of one model.")],
    machine: Annotated[str, typer.Option(help="As of `tune replay`.")] = "predicted:laptop_8gb",
) -> None:
    """Prints the tables."""
    traces = {file.stem: load_trace(file) for file in files}
    if len({facts_of(trace).fingerprint for trace in traces.values()}) > 1:
        raise SystemExit("the traces are of different models: record them with one")
    names = list(traces)
    tokens = min(_halves(t, np.random.default_rng(0))[0].size for t in traces.values()) * 3 // 4
    print(f"{tokens} tokens of each half; mean over {SPLITS} splits (standard deviation)")
    for title, measure in (
        ("Jensen-Shannon divergence of expert popularity, bits", divergence),
        ("Common experts in the most popular quarter", common),
        ("Choices on the quarter that is most popular in the row's workload", held),
    ):
        table = [[between(traces[a], traces[b], tokens, measure) for b in names] for a in names]
        _print(title, names, [[f"{mean:.3f} ({std:.3f})" for mean, std in row] for row in table])
    few = min(rows.size for trace in traces.values() for rows in token_rows(trace).values())
    pairs = [[between_prompts(traces[a], traces[b], few) for b in names] for a in names]
    _print(
        f"Jensen-Shannon divergence of one prompt and another, {few} tokens of each, bits", names,
        [[f"{mean:.3f} ({std:.3f})" for mean, std in row] for row in pairs],
    )  # fmt: skip
    print("\n| decoding | passes | median reuse distance | LRU hit rate, 1/4 | 1/2 |")
    print("| --- | --- | --- | --- | --- |")
    for name, trace in traces.items():
        far, count = reuse_distances(trace), facts_of(trace).experts
        passes = sum(item.phase == "decode" for item in trace.passes)
        rates = " | ".join(f"{np.mean(far < count // part):.3f}" for part in (4, 2))
        print(f"| {name} | {passes} | {np.median(far):.0f} | {rates} |")
    speeds = replayed(traces, machine, SHARE)
    _print(
        f"Decode tokens/s at {SHARE}, predicted", names,
        [[f"{row[name]:.1f}" for name in names] for row in speeds.values()], list(speeds),
    )  # fmt: skip
    lost = [[f"{loss:.1%}" for loss in row] for row in losses(speeds, names)]
    _print(f"Loss of the config that is best for the row's workload, {SHARE}", names, lost)


def _configs(base: EngineConfig) -> dict[str, EngineConfig]:
    return {
        f"{eviction}, depth {depth}": base.overlay(
            {
                "cache.eviction": eviction,
                "prefetch.depth": depth,
                "prefetch.predictor": "next_gate" if depth else "none",
            }
        )
        for eviction in EVICTIONS
        for depth in DEPTHS
    }


def _halves(
    trace: Trace, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of a random half of the sequences, and of the others."""
    rows = list(token_rows(trace).values())
    order = random.permutation(len(rows))
    left, right = np.array_split(order, 2)
    return np.concatenate([rows[n] for n in left]), np.concatenate([rows[n] for n in right])


def _relative(one: Floats, other: Floats) -> Floats:
    """Relative entropy of each layer in bits, [L]."""
    ratio = np.divide(one, other, out=np.ones_like(one), where=one > 0)
    return (one * np.log2(ratio)).sum(1)


def _print(
    title: str,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    labels: Sequence[str] | None = None,
) -> None:
    print(f"\n{title}\n\n| | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for label, row in zip(labels or names, rows, strict=True):
        print(f"| {label} | {' | '.join(row)} |")
