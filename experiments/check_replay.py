"""Measures how accurately the replay predicts: runs and replays randomly drawn configs.

    python -m experiments.run check_replay MODEL --configs 40 --seed 1 --output FILE.jsonl

The configs are drawn from the seed after the timings are frozen. Resumable: timings, traces and
finished configs are read back from FILE.jsonl and its folder; only what is missing is run. The last
line printed is the summary.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.facts.timings import ModelTimings, read_timings, save_timings
from engine.replay.simulate import replay
from engine.trace.trace import Trace, load_trace
from tuner.cli.options import open_session
from tuner.definition.workload import DEFAULT, load_workload
from tuner.engine_client.session import EngineSession
from tuner.folders import resolve_model

BITS = (16, 4)
COUNTS = (1, 2, 4)
WARM_ROUNDS, ROUNDS = 1, 2
METRICS = ("output_tps", "decode_tps", "prefill_tps", "expert_hit_rate")


def draw(rng: random.Random, device: str) -> dict[str, Any]:
    """Draws one config from settings that the replay can predict."""
    predictor = rng.choice(["none", "none", "next_gate", "next_gate", "repeat_last", "popularity"])
    eviction = rng.choice(["lru", "lru", "lfu", "arc", "p_freq", "hobbit", "none"])
    point: dict[str, Any] = {
        "precision.bits": rng.choice(BITS),
        "cache.expert_bytes": f"{rng.choice([15, 20, 25, 33, 40, 50, 60, 75, 90])}%",
        "cache.eviction": eviction,
        "cache.allocation": rng.choice(["uniform", "uniform", "shallow_first"]),
        "prefetch.predictor": predictor,
        "prefetch.depth": 0 if predictor == "none" else rng.choice([1, 1, 2]),
        "prefetch.options.limit": rng.choice([0, 1, 2, 4]),
        "transfer.queue": rng.choice(["two_priority", "two_priority", "fifo"]),
        "transfer.chunk_bytes": rng.choice([256 << 10, 1 << 20, 4 << 20]),
        "batch.count": rng.choice(COUNTS),
        "batch.order": rng.choice(["ready_first", "ready_first", "routed", "hot_first"]),
    }
    if device.startswith("emulated:"):
        point["placement.name"] = rng.choice(["device", "device", "host_below", "host_split"])
        point["placement.host_fraction"] = rng.choice([0.3, 0.5, 0.7])
    return point


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--configs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=16)
    arguments = parser.parse_args()
    work = load_workload(
        DEFAULT,
        prompt_tokens=arguments.prompt_tokens,
        output_tokens=arguments.output_tokens,
        sequences=4,
    )
    base = EngineConfig().overlay(
        {"kv.max_tokens": arguments.prompt_tokens + arguments.output_tokens + 8}
    )
    done = read_done(arguments.output)
    rng = random.Random(arguments.seed)
    points = [draw(rng, arguments.device) for _ in range(arguments.configs)]
    with open_session(resolve_model(arguments.model), arguments.device) as session:
        timings = frozen_timings(session, work, base, arguments.output)
        traces = {
            (bits, count): trace_of(session, work, base, arguments.output, bits, count)
            for bits in BITS
            for count in COUNTS
        }
        for number, point in enumerate(points):
            if number in done:
                continue
            row = {"number": number, "config": point}
            row |= compare(session, work, base.overlay(point), timings, traces)
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{number}: {row.get('error')} {row.get('ratio')}", flush=True)
    summarize(read_done(arguments.output))
    return 0


def read_done(path: Path) -> dict[int, dict[str, Any]]:
    """Reads finished configs by number."""
    if not path.is_file():
        return {}
    rows = [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    return {row["number"]: row for row in rows}


def frozen_timings(
    session: EngineSession, work: Workload, base: EngineConfig, output: Path
) -> ModelTimings:
    """Returns the timings, measured once before any of the drawn configs runs."""
    path = output.with_suffix(".timings.json")
    found = read_timings(path) if path.is_file() else None
    if found is None:
        text = load_workload(DEFAULT)
        capacity = base.overlay({"kv.max_tokens": 256})
        found = session.calibrate(capacity, text, BITS)
        save_timings(found, path)
        session.close()
    return found


def trace_of(
    session: EngineSession, work: Workload, base: EngineConfig, output: Path, bits: int, count: int
) -> Trace:
    """Returns the routing of the rounds that will be timed, and of one warm-up round before
    them."""
    path = output.with_suffix(f".{bits}-{count}.npz")
    if not path.is_file():
        session.configure(base.overlay({"precision.bits": bits, "batch.count": count}))
        session.request(
            "trace",
            path=str(path.resolve()),
            workload=work.to_json(),
            repeats=WARM_ROUNDS + ROUNDS,
            seed=0,
        )
    return load_trace(path)


def compare(
    session: EngineSession,
    work: Workload,
    config: EngineConfig,
    timings: ModelTimings,
    traces: dict[tuple[int, int], Trace],
) -> dict[str, Any]:
    """Runs and replays one config."""
    resolved = session.configure(config).config
    session.measure(work, repeats=WARM_ROUNDS, warm_up=False, seed=0)
    report = session.measure(work, repeats=ROUNDS, warm_up=False, seed=WARM_ROUNDS)
    trace = traces[config.precision.bits, config.batch.count]
    groups = -(-work.sequences // config.batch.count) * WARM_ROUNDS
    warm = [n for n, item in enumerate(trace.passes) if item.group < groups]
    started = time.perf_counter()
    found = replay(resolved, session.facts, trace, timings, warm=warm)
    seconds = time.perf_counter() - started
    predicted = found.metrics(set(range(len(trace.passes))) - set(warm))
    measured = {name: report.metrics[name].value for name in METRICS}
    return {
        "measured": measured,
        "predicted": {name: predicted[name] for name in METRICS},
        "ratio": predicted["output_tps"] / measured["output_tps"],
        "decode_ratio": predicted["decode_tps"] / measured["decode_tps"],
        "replay_s": seconds,
        "sentinel": [report.sentinel.compute_ms, report.sentinel.read_ms],
    }


def summarize(rows: dict[int, dict[str, Any]]) -> None:
    """Prints the mean and largest error of output_tps and of the hit rate."""
    ratios = [row["ratio"] for row in rows.values() if "ratio" in row]
    errors = [abs(ratio - 1) for ratio in ratios]
    hits = [
        abs(row["measured"]["expert_hit_rate"] - row["predicted"]["expert_hit_rate"])
        for row in rows.values()
    ]
    print(
        f"{len(ratios)} configs: output_tps off by {statistics.mean(errors):.1%} on average, "
        f"{max(errors):.1%} at most (ratio {min(ratios):.2f} to {max(ratios):.2f}); hit rate off "
        f"by {max(hits):.4f} at most"
    )
