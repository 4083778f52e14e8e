"""Beside a device with memory of its own, every precision, tier and treatment of keys and values
gives the bits of the CPU with the same settings and everything resident."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.emulated import EmulatedDevice
from engine.device.registry import open_device
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.fakes.staged_device import StagedDevice

PROMPTS = [torch.arange(3, 30)[None], torch.arange(40, 67)[None]]
LOSSY: dict[str, tuple[Any, ...]] = {
    "precision.bits": (16, 8, 4, 3, 2),
    "precision.non_expert_bits": (16, 8, 4),
    "kv.bits": (16, 8, 4),
    "kv.keep_fraction": (1.0, 0.5),
}
EXACT: dict[str, tuple[Any, ...]] = {
    "host.bytes": (0, "50%", "auto"),
    "kv.placement": ("device", "host"),
    "cache.expert_bytes": ("20%", "60%"),
    "prefetch.depth": (0, 1),
}
BASE = {"kv.max_tokens": 64, "prefill.chunk_tokens": 9, "kernel.name": "dequantize"}
SHORT = 24  # of all combinations, in `make test`


def combinations(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    found = [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]
    # refused: merged keys and values are kept at 16 bits only
    return [one for one in found if one.get("kv.bits", 16) == 16 or one["kv.keep_fraction"] == 1]


def run(engine: Engine, settings: dict[str, Any]) -> list[torch.Tensor]:
    engine.configure(EngineConfig().overlay(BASE | settings))
    batches = [MicroBatch(prompt) for prompt in PROMPTS]
    found = list(engine.prefill(batches))
    for token in (5, 9):
        for batch in batches:
            batch.tokens = torch.tensor([[token]])
        found += engine.forward(batches, "decode")
    return [one.clone() for one in found]


def staged() -> Device:
    device = StagedDevice()
    device.name = "staged:0"  # no memory of the host's
    return device


def emulated() -> Device:
    device = open_device("emulated:laptop_8gb")
    assert isinstance(device, EmulatedDevice)
    return device


@pytest.fixture(scope="module", params=[staged, emulated], ids=lambda made: made.__name__)
def engines(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Engine]]:
    """The device's, and the CPU's."""
    cache = tmp_path_factory.mktemp("cache")
    made = Engine(tiny_folder, request.param(), cache), Engine(tiny_folder, CpuDevice(), cache)
    yield made
    for engine in made:
        engine.close()


def check(
    engines: tuple[Engine, Engine], lossy: dict[str, Any], exact: list[dict[str, Any]]
) -> None:
    device, cpu = engines
    expected = run(cpu, lossy | {"cache.expert_bytes": "100%"})
    for one in exact:
        if lossy["kv.keep_fraction"] < 1 and one["kv.placement"] == "host":
            continue  # refused: merged keys and values lie on the device only
        prefetch = {"prefetch.predictor": "next_gate" if one["prefetch.depth"] else "none"}
        found = run(device, lossy | one | prefetch)
        assert all(map(torch.equal, found, expected)), (lossy, one)
        assert sum(device.residency.counters.misses.values()) > 0


def test_a_few_of_all_settings_change_no_bit(engines: tuple[Engine, Engine]) -> None:
    rng = random.Random(0)
    exact = combinations(EXACT)
    for lossy in rng.sample(combinations(LOSSY), SHORT // 2):
        check(engines, lossy, rng.sample(exact, 3))


@pytest.mark.slow
@pytest.mark.parametrize("lossy", combinations(LOSSY), ids=str)
def test_every_setting_changes_no_bit(
    engines: tuple[Engine, Engine], lossy: dict[str, Any]
) -> None:
    check(engines, lossy, combinations(EXACT))
