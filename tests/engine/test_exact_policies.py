"""Exact policies change no bit: every predictor, eviction, allocation, scope, order and queue gives
the logits of the CPU with everything resident, whether records are read into slots or copied."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import ConfigError
from engine.measure.recording import TraceRecorder
from engine.policy.learned import learned_path
from engine.policy.registry import ALLOCATIONS, EVICTIONS, ORDERS, PREDICTORS, QUEUES
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.fakes.staged_device import StagedDevice

BASE: dict[str, Any] = {
    "kv.max_tokens": 64,
    "prefill.chunk_tokens": 8,
    "transfer.chunk_bytes": 4096,
    "batch.count": 2,
}
HIDDEN, EXPERTS = 64, 8


DEVICES = [CpuDevice, pytest.param(StagedDevice, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=DEVICES, ids=lambda device: device.__name__)
def opened(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    engine = Engine(tiny_folder, request.param(), tmp_path_factory.mktemp("cache"))
    rng = np.random.default_rng(0)
    networks: dict[str, Any] = {"mlp.stride": np.array(2)}
    for layer in range(engine.facts.moe_layers):
        networks |= {
            f"mlp.{layer}.w1": rng.normal(size=(HIDDEN, 16)),
            f"mlp.{layer}.b1": np.zeros(16),
            f"mlp.{layer}.w2": rng.normal(size=(16, EXPERTS)),
            f"mlp.{layer}.b2": np.zeros(EXPERTS),
            f"pregate.{layer}": rng.normal(size=(EXPERTS, HIDDEN)),
        }
    path = learned_path(engine.facts, engine.cache_folder)
    path.parent.mkdir(parents=True)
    np.savez(path, **networks)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(
    opened: Engine, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Any, Path]:
    """Logits on the CPU with everything resident, the trace of that run, and where it lies."""
    engine = Engine(tiny_folder, CpuDevice(), opened.cache_folder)
    engine.configure(EngineConfig().overlay({**BASE, "cache.expert_bytes": "100%"}))
    recorder = TraceRecorder(engine.facts)
    engine.record(recorder)
    logits = run(engine)
    engine.close()
    path = tmp_path_factory.mktemp("trace") / "routing.npz"
    trace = recorder.trace()
    trace.save(path)
    return logits, trace, path


def run(engine: Engine) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    batches = [MicroBatch(torch.randint(3, 290, (1, 13), generator=generator)) for _ in range(2)]
    found = list(engine.prefill(batches))
    for token in (7, 70, 170):
        for batch in batches:
            batch.tokens = torch.tensor([[token]])
        found += engine.forward(batches, "decode")
    return found


def settings() -> list[dict[str, Any]]:
    """One setting a mechanism's name, over a cache that is too small."""
    found: list[dict[str, Any]] = []
    for eviction in EVICTIONS:
        found += [{"cache.eviction": eviction, "cache.scope": s} for s in ("layer", "shared")]
    found += [{"cache.allocation": allocation} for allocation in ALLOCATIONS]
    found += [{"prefetch.predictor": p, "prefetch.depth": 2} for p in PREDICTORS]
    found += [{"prefetch.predictor": "mlp", "prefetch.depth": 1, "cache.expert_bytes": "20%"}]
    found += [{"batch.order": order} for order in ORDERS]
    found += [
        {"transfer.queue": queue, "prefetch.predictor": "popularity", "prefetch.depth": 3}
        for queue in QUEUES
    ]
    held = {"cache.options.hold_predicted": True, "prefetch.options.limit": 1}
    return [*found, {**held, "prefetch.predictor": "next_gate", "prefetch.depth": 1}]


@pytest.mark.parametrize("setting", settings(), ids=str)
def test_the_logits_are_those_of_everything_resident(
    opened: Engine, reference: tuple[Any, Any, Path], setting: dict[str, Any]
) -> None:
    expected, trace, path = reference
    overlay = {**BASE, "cache.expert_bytes": "40%", "cache.options.trace": str(path), **setting}
    overlay["prefetch.options.stride"] = 2
    opened.configure(EngineConfig().overlay(overlay))
    opened.live.policy.future.load(trace)
    found = run(opened)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    counters = opened.residency.counters
    assert sum(counters.misses.values()) > 0, "nothing was missing: the setting was not tried"


def test_a_policy_that_cannot_be_made_leaves_nothing_open(
    tiny_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path)
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    untrained = {**BASE, "prefetch.predictor": "mlp", "prefetch.depth": 1}
    with pytest.raises(ConfigError, match="tune train predictor"):
        engine.configure(EngineConfig().overlay(untrained))
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    engine.close()
