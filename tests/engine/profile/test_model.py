"""Calibration on a tiny model: every part is timed, and its replays take as long as the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.settings import EngineConfig
from engine.device.registry import open_device
from engine.facts.timings import load_timings, read_timings, save_timings
from engine.measure.pass_through import Sequenced
from engine.native import library
from engine.profile import model as calibration
from engine.profile.model import calibrate
from engine.run.engine import Engine

SEQUENCES = [
    Sequenced(tuple(range(3 + n, 67 + n)), tuple(range(80 + n, 100 + n))) for n in range(4)
]


@pytest.mark.parametrize("device", ["cpu", "emulated:laptop_8gb"])
def test_every_part_is_timed(
    device: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "EXPERT_TOKENS", (1, 4, 16, 128))
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
    assert timings.notes["4"]["calibration_runs"] == 3
    path = tmp_path / "timings" / "here.json"
    save_timings(timings, path)
    assert load_timings(path) == timings
    assert read_timings(path) == timings
