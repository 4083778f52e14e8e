"""No copy overtakes compute and no compute a copy: proven by vector clocks, not by timing.

Every guard that orders them is taken away once, and its race has to be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.evaluate.scoring import Continuation, score
from engine.experts.slots import Slots
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.fakes.checked_device import CheckedDevice, CheckedEvent

BASE: dict[str, Any] = {
    "kv.max_tokens": 64,
    "prefill.chunk_tokens": 8,
    "transfer.chunk_bytes": 4096,
    "cache.expert_bytes": "40%",
    "batch.count": 2,
}
HOST: dict[str, Any] = {"host.bytes": 10**9}
PLAIN: dict[str, Any] = {"kernel.name": "dequantize"}  # no kernel has to be tried first
SETTINGS: list[dict[str, Any]] = [
    {},
    PLAIN,
    {"precision.bits": 4, **PLAIN},
    {"precision.bits": 4, "precision.non_expert_bits": 4, **PLAIN},
    {"precision.bits": 8, "precision.scheme": "gate_threshold", "precision.low_bits": 4, **PLAIN},
    {"host.bytes": 100_000},
    HOST,
    {**HOST, "placement.name": "host_split", "placement.host_fraction": 0.5},
    {**HOST, "placement.name": "host_below", "placement.host_tokens": 1},
    {"cache.scope": "shared"},
    {"cache.eviction": "none", **HOST},
    {"cache.eviction": "lfu", "batch.order": "ready_first"},
    {"cache.expert_bytes": "20%", "prefetch.predictor": "next_gate", "prefetch.depth": 1},
    {
        "cache.options.hold_predicted": True,
        "prefetch.options.limit": 1,
        "prefetch.predictor": "next_gate",
        "prefetch.depth": 1,
    },
    {"transfer.queue": "fifo", "prefetch.predictor": "popularity", "prefetch.depth": 3},
    {"batch.order": "hot_first", "transfer.in_flight": 1},
    {"kv.placement": "host"},
    {"kv.placement": "host", "kv.bits": 4, **HOST},
    {"kv.bits": 8, **PLAIN},
    {"kv.keep_fraction": 0.5},
]


@pytest.fixture
def device() -> CheckedDevice:
    return CheckedDevice()


@pytest.fixture
def checked(device: CheckedDevice, tiny_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tiny_folder, device, tmp_path)
    yield engine
    engine.close()


def run(engine: Engine, **settings: Any) -> list[str]:
    """A prompt of two micro-batches and some tokens; the races that were found."""
    device = engine.device
    assert isinstance(device, CheckedDevice)
    engine.configure(EngineConfig().overlay({**BASE, **settings}))
    generator = torch.Generator().manual_seed(5)
    batches = [MicroBatch(torch.randint(3, 290, (1, 13), generator=generator)) for _ in range(2)]
    with device.watching():
        engine.prefill(batches)
        for token in (7, 70, 170, 7, 71):
            for batch in batches:
                batch.tokens = torch.tensor([[token]])
            engine.forward(batches, "decode")
    assert device.copies, "nothing was moved: nothing was checked"
    return device.races


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_copies_and_compute_are_ordered(checked: Engine, settings: dict[str, Any]) -> None:
    assert run(checked, **settings) == []


def test_a_new_configuration_is_ordered_after_the_former(checked: Engine) -> None:
    for settings in ({}, {"kv.placement": "host"}, HOST, {"precision.bits": 4}):
        assert run(checked, **settings) == []


def test_texts_that_pass_layer_by_layer_are_ordered(checked: Engine, device: CheckedDevice) -> None:
    checked.configure(EngineConfig().overlay({**BASE, "compute.dtype": "float32"}))
    items = [Continuation(tuple(range(3, 3 + n)), (5, 9)) for n in (4, 20, 9)]
    with device.watching():
        score(checked, items)
    assert device.races == []
    assert device.copies


def no_wait(self: CheckedDevice, event: Any) -> None:
    """Compute does not wait for a copy."""


def no_mark(self: Slots, slots: Any) -> None:
    """Nobody notes that compute uses these slots."""


def no_synchronize(self: CheckedEvent) -> None:
    """The host does not wait for a copy before it fills the staging buffer again."""


def copy_at_once(self: CheckedDevice, target: Any, source: Any, after: Any) -> Any:
    """A copy does not wait for compute."""
    return COPY(self, target, source, None)


COPY = CheckedDevice.copy
PLANTED = [
    (CheckedDevice, "wait", no_wait, {}, r"read on compute .* the write on copy stream"),
    (Slots, "mark_used", no_mark, {}, r"write on copy stream .* the read on compute"),
    (CheckedDevice, "copy", copy_at_once, {}, r"write on copy stream .* the read on compute"),
    (CheckedEvent, "synchronize", no_synchronize, {}, r"write on host .* the read on copy stream"),
    (
        CheckedDevice, "wait", no_wait, {"kv.placement": "host", "cache.expert_bytes": "100%"},
        r"read on compute .*\(moved rows\)",
    ),
]  # fmt: skip


@pytest.mark.parametrize("kernel", ["auto", "dequantize"])
@pytest.mark.parametrize(("owner", "name", "planted", "settings", "expected"), PLANTED)
def test_a_guard_that_is_missing_is_found(
    checked: Engine,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    owner: type,
    name: str,
    planted: Any,
    settings: dict[str, Any],
    expected: str,
) -> None:
    monkeypatch.setattr(owner, name, planted)
    races = run(checked, **settings, **{"kernel.name": kernel})
    assert any(re.search(expected, race) for race in races), races[:3]
