"""What a device computes while the host waits for it is charged to what it computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.base import Event
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.moe_layers import ExpertsRuntime
from tests.fakes.staged_device import StagedDevice

EXPERTS_S, BESIDE_S = 0.03, 0.01


class LateEvent:
    """Done at a time."""

    def __init__(self, at: float) -> None:
        self.at = at

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.at - time.perf_counter()))

    def query(self) -> bool:
        return time.perf_counter() >= self.at


class LateDevice(StagedDevice):
    """Work that is queued takes its time after all work before it, while the host goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._free_at = 0.0

    def queue(self, seconds: float) -> None:
        self._free_at = max(self._free_at, time.perf_counter()) + seconds

    def timestamp(self) -> LateEvent:
        return LateEvent(max(self._free_at, time.perf_counter()))

    def elapsed_s(self, first: Event, last: Event) -> float:
        assert isinstance(first, LateEvent)
        assert isinstance(last, LateEvent)
        assert last.query()
        return last.at - first.at


def test_work_of_the_device_is_charged_to_what_it_was(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = LateDevice()
    engine = Engine(tiny_folder, device, tmp_path)
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 64, "kernel.name": "dequantize"}))
    run_experts, gate_left = ExpertsRuntime._run_experts, ExpertsRuntime.gate_left

    def queue_experts(self: Any, *given: Any) -> torch.Tensor:
        out = run_experts(self, *given)
        device.queue(EXPERTS_S)
        return out

    def queue_beside(self: Any, *given: Any) -> None:
        gate_left(self, *given)
        device.queue(BESIDE_S)

    batch = MicroBatch(torch.arange(3, 20)[None])
    engine.prefill([batch])
    monkeypatch.setattr(ExpertsRuntime, "_run_experts", queue_experts)
    monkeypatch.setattr(ExpertsRuntime, "gate_left", queue_beside)
    batch.tokens = torch.tensor([[5]])
    engine.clock.reset()
    engine.forward([batch], "decode")
    engine.clock.switch("other")
    layers = engine.facts.moe_layers
    seconds = engine.clock.seconds
    engine.close()
    # a busy host comes late
    assert seconds["compute"] >= 0.7 * layers * EXPERTS_S
    assert seconds["non_expert"] >= 0.9 * layers * BESIDE_S
    assert seconds["policy"] + seconds["other"] < EXPERTS_S / 2
    assert sum(seconds.values()) >= 0.9 * layers * (EXPERTS_S + BESIDE_S)
