"""Calibration on a tiny model: every part is timed, and its replays take as long as the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.device.registry import open_device
from engine.facts.timings import load_timings, read_timings, save_timings
from engine.measure.bandwidth import link_bandwidth
from engine.measure.pass_through import Sequenced
from engine.native import library
from engine.profile import model as calibration
from engine.profile.model import calibrate
from engine.run.engine import Engine
from tests.fakes.staged_device import StagedDevice

SEQUENCES = [
    Sequenced(tuple(range(3 + n, 67 + n)), tuple(range(80 + n, 100 + n))) for n in range(4)
]


@pytest.mark.parametrize("device", ["cpu", "emulated:laptop_8gb"])
def test_every_part_is_timed(
    device: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.profile.experts.EXPERT_TOKENS", (1, 4, 16, 128))
    engine = Engine(tiny_folder, open_device(device), tmp_path / "cache")
    timings = calibrate(engine, SEQUENCES, EngineConfig().overlay({"kv.max_tokens": 256}), [16, 4])
    engine.close()
    assert timings.device == device
    assert set(timings.expert_s) == {16, 4}
    assert all(value > 0 for value in timings.non_expert_s.values())
    if device == "cpu" and library.is_available():
        assert timings.ready is not None
        assert set(timings.ready.expert_s) == {16, 4}
        assert set(timings.ready.non_expert_s) == set(timings.ready.policy_s) == {1, 2, 4}
    assert all(value >= 1 for value in timings.contention.values())
    assert bool(timings.host_expert_s) == device.startswith("emulated")
    sharing = {source.sharing for source in timings.sources.values()}
    assert sharing == {"queued" if device.startswith("emulated") else "shared"}
    behind = {source.sharing for source in timings.disk_sources.values()}
    assert behind == ({"shared"} if device.startswith("emulated") else set())
    assert timings.notes["4"]["calibration_runs"] == 3
    path = tmp_path / "timings" / "here.json"
    save_timings(timings, path)
    assert load_timings(path) == timings
    assert read_timings(path) == timings


@pytest.mark.parametrize(("held", "sharing"), [("50%", "queued"), (0, "shared")])
def test_with_a_tier_of_some_records_link_and_disk_are_timed(
    tiny_folder: Path, tmp_path: Path, held: Any, sharing: str
) -> None:
    device = StagedDevice()
    device.name = "staged:0"  # no memory of the host's
    engine = Engine(tiny_folder, device, tmp_path)
    base = EngineConfig().overlay({"kv.max_tokens": 64, "host.bytes": held})
    engine.configure(base)
    if held:
        assert not engine.live.host_holds_all
        tier = engine.live.tiers[16]
        before = tier.misses
        assert link_bandwidth(device, tier, 2) > 0
        assert tier.misses == before, "no record was read from the disk meanwhile"
    source, disk = calibration._time_sources(engine, base, 16)
    assert source.sharing == sharing
    assert source.rate(1) > 0
    assert (disk is not None and disk.sharing == "shared") == bool(held)
    engine.close()
