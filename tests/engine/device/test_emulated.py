"""The emulated machine: a link of stated rate, host computation, and the same results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.device.emulated import Link
from engine.device.registry import open_device
from engine.errors import UsageError
from engine.facts.emulated_machine import load_machine, machine_names, predicted_timings
from engine.measure.measure import measure
from engine.measure.pass_through import Sequenced
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch

pytestmark = pytest.mark.alone

PROMPT = torch.arange(3, 23)[None]
BASE = {"kv.max_tokens": 64, "cache.expert_bytes": "40%"}


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def emulated(tiny_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tiny_folder, open_device("emulated:laptop_8gb"), tmp_path / "cache")
    yield engine
    engine.close()


def logits_of(engine: Engine) -> torch.Tensor:
    """Of a prompt and three more tokens."""
    batch = MicroBatch(PROMPT)
    out = engine.prefill([batch])[0]
    for token in (5, 9, 11):
        batch.tokens = torch.tensor([[token]])
        out = engine.forward([batch], "decode")[0]
    return out


def test_a_transfer_takes_latency_and_bytes_over_rate() -> None:
    clock = FakeTime()
    link = Link(1000.0, 0.5, clock.now, clock.sleep)
    link.carry(2000, lambda: None)
    assert clock.now_s == pytest.approx(2.5)


def test_transfers_queue_behind_each_other_and_oversleeping_does_not_add_up() -> None:
    clock = FakeTime()
    link = Link(1000.0, 0.0, clock.now, lambda seconds: clock.sleep(seconds + 0.25))
    link.carry(1000, lambda: None)
    assert clock.now_s == pytest.approx(1.25)
    asked = clock.now_s
    link.carry(
        1000, lambda: None
    )  # the link has been free since 1.0, this one is asked for at 1.25
    assert clock.now_s == pytest.approx(asked + 1.25)


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_keeps_the_ratios_of_its_published_figures(name: str) -> None:
    machine = load_machine(name)
    assert machine.slowed_link_bytes_per_s / machine.slowed_host_bytes_per_s == pytest.approx(
        machine.link_bytes_per_s / machine.host_bytes_per_s
    )
    assert machine.device_bytes_per_s > machine.host_bytes_per_s > machine.link_bytes_per_s
    assert 4e9 < machine.device_bytes_per_s / machine.slow_down < 16e9  # what a core here reads


def test_a_machine_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="laptop_8gb"):
        open_device("emulated:laptop_8g")


def test_a_profile_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = Path("studies/hardware/laptop_8gb.yaml").read_text(encoding="utf-8")
    path.write_text(text + "colour: red\n")
    with pytest.raises(UsageError, match="colour"):
        load_machine(str(path))


def test_the_same_logits_as_on_the_cpu(emulated: Engine, tiny_folder: Path, tmp_path: Path) -> None:
    emulated.configure(EngineConfig().overlay(BASE))
    here = Engine(tiny_folder, CpuDevice(), tmp_path / "here")
    here.configure(EngineConfig().overlay(BASE))
    assert torch.equal(logits_of(emulated), logits_of(here))
    here.close()


@pytest.mark.parametrize(
    "placement",
    [
        {"placement.name": "host_below", "placement.host_tokens": 1},
        {"placement.name": "host_split", "placement.host_fraction": 0.5},
        {"placement.name": "host_split", "placement.host_fraction": "auto"},
        {"placement.name": "earliest", "placement.options.host_ratios": {"1": 0.3, "64": 9}},
        {"placement.name": "earliest"},
    ],
)
def test_what_the_host_computes_is_what_the_device_would(
    emulated: Engine, placement: dict[str, Any]
) -> None:
    emulated.configure(EngineConfig().overlay(BASE))
    expected = logits_of(emulated)
    resolved, _ = emulated.configure(EngineConfig().overlay({**BASE, **placement}))
    found = logits_of(emulated)
    assert emulated.residency.counters.on_host > 0
    assert torch.equal(found, expected), "both multiply with the same native products"
    assert emulated.live.inactive == ()
    assert resolved.placement.name == placement["placement.name"]
    if resolved.placement.name == "earliest":
        ratios = resolved.placement.options["host_ratios"]
        assert len(ratios) > 1, "given, or measured at configure"
        assert all(ratio > 0 for ratio in ratios.values())
    if resolved.placement.name == "host_split":
        fraction = resolved.placement.host_fraction
        assert fraction != "auto", "measured at configure"
        assert 0 < float(fraction) < 1


def test_on_the_cpu_placement_says_that_it_is_inactive(tiny_folder: Path, tmp_path: Path) -> None:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path)
    engine.configure(EngineConfig().overlay({**BASE, "placement.name": "host_split"}))
    assert "inactive" in engine.live.inactive[0]
    logits_of(engine)
    assert engine.residency.counters.on_host == 0
    engine.close()


def test_measuring_on_it_waits_for_the_link_and_not_for_the_disk(emulated: Engine) -> None:
    emulated.configure(EngineConfig().overlay({**BASE, "cache.eviction": "none"}))
    sequences = [Sequenced(tuple(range(3, 19)), tuple(range(20, 26))) for _ in range(2)]
    report = measure(
        emulated,
        sequences,
        output_tokens=6,
        sequences_per_repeat=1,
        repeats=1,
        first_repeat=0,
        warm_up=False,
        runtime_bytes=0,
    )
    metrics = report.metrics
    assert metrics["time_ms_per_token.transfer_wait"].value > 0
    assert metrics["time_ms_per_token.disk_wait"].value == 0
    assert metrics["disk_bytes_per_token"].value == 0
    slowed = load_machine("laptop_8gb").slowed_link_bytes_per_s
    assert metrics["read_bytes_per_s"].value < 1.05 * slowed


def test_published_figures_give_timings_that_say_they_are_predicted(emulated: Engine) -> None:
    timings = predicted_timings(load_machine("h100"), emulated.facts)
    assert "predicted" in timings.notes
    assert timings.expert_s[16][1] <= timings.expert_s[16][4096]
