"""The replay decides what the engine decides: hit for hit, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.measure.recording import TraceRecorder
from engine.memory.plan import resolve
from engine.policy.context import PolicyContext
from engine.policy.expert_policy import PolicyCounters
from engine.policy.future import Future
from engine.policy.registry import ALLOCATIONS, EVICTIONS, PREDICTORS, build_policy
from engine.replay.walk import walk
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.trace.trace import Trace, load_trace

BASE: dict[str, Any] = {
    "cache.expert_bytes": "40%",
    "prefill.chunk_tokens": 8,
    "kv.max_tokens": 64,
    "batch.count": 2,
}
GROUPS, NEW_TOKENS = 2, 6
NEEDS_MORE = {"mlp"}  # what was never trained has no trace to compare on


@pytest.fixture(scope="module")
def opened(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path_factory.mktemp("cache"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def trace(opened: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, Path]:
    """Recorded under one config, written and read back."""
    opened.configure(EngineConfig().overlay(BASE))
    recorder = TraceRecorder(opened.facts, gate_inputs=True)
    opened.record(recorder)
    run(opened)
    path = tmp_path_factory.mktemp("trace") / "routing.npz"
    recorder.trace(workload="test").save(path)
    return load_trace(path), path


def run(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(GROUPS):
        prompts = [torch.randint(3, 290, (1, 13), generator=generator) for _ in range(2)]
        batches = [MicroBatch(prompt) for prompt in prompts]
        logits = engine.prefill(batches)
        for _ in range(NEW_TOKENS):
            for batch, rows in zip(batches, logits, strict=True):
                batch.tokens = rows[:, -1].argmax(-1, keepdim=True)
            logits = engine.forward(batches, "decode")


def counted(counters: PolicyCounters) -> tuple[Any, ...]:
    return (
        counters.hits,
        counters.misses,
        dict(counters.hits_by_layer),
        dict(counters.misses_by_layer),
        counters.prefetched,
        counters.predicted_demanded,
    )


def compare(engine: Engine, trace: tuple[Trace, Path], overlay: dict[str, Any]) -> PolicyCounters:
    recorded, path = trace
    config = EngineConfig().overlay({**BASE, "cache.options.trace": str(path), **overlay})
    engine.configure(config)
    engine.live.policy.future.load(recorded)
    run(engine)
    resolved, memory = resolve(config, engine.facts)
    future = Future(engine.facts.moe_layers)
    context = PolicyContext(resolved, engine.facts, future, recorded)
    policy = build_policy(context, memory.slots, host_compute=False)
    future.load(recorded)
    walk(recorded, policy)
    assert counted(policy.counters) == counted(engine.residency.counters)
    assert sum(policy.counters.hits.values()) > 0 or overlay.get("cache.eviction") == "none"
    return policy.counters


@pytest.mark.parametrize("scope", ["layer", "shared"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("eviction", EVICTIONS)
def test_without_prediction(
    opened: Engine, trace: tuple[Trace, Path], eviction: str, allocation: str, scope: str
) -> None:
    settings = {
        "cache.eviction": eviction,
        "cache.allocation": allocation,
        "cache.scope": scope,
    }
    compare(opened, trace, settings)


@pytest.mark.parametrize("predictor", sorted(set(PREDICTORS) - NEEDS_MORE))
@pytest.mark.parametrize("depth", [1, 3])
def test_with_prediction(
    opened: Engine, trace: tuple[Trace, Path], predictor: str, depth: int
) -> None:
    counters = compare(opened, trace, {"prefetch.predictor": predictor, "prefetch.depth": depth})
    assert (counters.predicted > 0) == (predictor != "none")


def test_a_trace_comes_back_as_it_was_written(trace: tuple[Trace, Path]) -> None:
    recorded, _ = trace
    assert recorded.look_ahead is not None
    assert recorded.probabilities is not None
    assert recorded.gate_inputs is not None
    tokens = sum(sum(item.tokens) for item in recorded.passes)
    assert recorded.experts.shape[0] == tokens
    assert [item.phase for item in recorded.passes[:3]] == ["prefill", "prefill", "decode"]
    assert {item.group for item in recorded.passes} == {0, 1}
