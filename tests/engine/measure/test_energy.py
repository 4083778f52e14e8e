"""Energy counters: RAPL in a folder made here, the real NVML bindings on the fake driver."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.measure.energy import open_energy_meter, open_nvml_meter, open_rapl_meter
from tests.requirements import require_program

SOURCE = Path(__file__).resolve().parents[2] / "fakes" / "nvml" / "fake_nvml.c"
RANGE_UJ = 1_000_000
CHILD = """
from engine.measure.energy import open_nvml_meter
meter = open_nvml_meter("GPU-a")
print(meter.joules(), meter.joules(), open_nvml_meter("GPU-b"), open_nvml_meter("GPU-none"))
"""


def write_zone(folder: Path, zone: str, name: str, energy_uj: int) -> None:
    place = folder / zone
    place.mkdir(exist_ok=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{energy_uj}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")


def test_rapl_sums_packages_and_follows_a_wrap_around(tmp_path: Path) -> None:
    write_zone(tmp_path, "intel-rapl:0", "package-0", 900_000)
    write_zone(tmp_path, "intel-rapl:1", "package-1", 0)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 0)
    write_zone(tmp_path, "intel-rapl:2", "psys", 0)
    meter = open_energy_meter(torch.device("cpu"), tmp_path)
    assert meter is not None
    assert meter.joules() == 0
    write_zone(tmp_path, "intel-rapl:0", "package-0", 100_000)  # 0.2 J, once around
    write_zone(tmp_path, "intel-rapl:1", "package-1", 500_000)
    write_zone(tmp_path, "intel-rapl:0:0", "core", 70_000)
    write_zone(tmp_path, "intel-rapl:2", "psys", 900_000)
    assert meter.joules() == pytest.approx(0.7)
    write_zone(tmp_path, "intel-rapl:0", "package-0", 50_000)  # and again
    assert meter.joules() == pytest.approx(1.65)


def test_without_readable_counters_there_is_no_meter(tmp_path: Path) -> None:
    assert open_rapl_meter(tmp_path / "absent") is None
    write_zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("")
    assert open_rapl_meter(tmp_path) is None
    assert open_energy_meter(torch.device("meta"), tmp_path) is None
    assert open_nvml_meter("GPU-none") is None


def test_nvml_counts_the_card_of_this_uuid(tmp_path: Path) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([require_program("gcc"), "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2.5", "5.0", "None", "None"]
