"""The machine probe: the real psutil and pynvml, with a small driver made by gcc behind them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.facts.machine import Hardware, probe
from tests.requirements import require_program

SOURCE = Path(__file__).resolve().parents[2] / "fakes" / "nvml" / "fake_nvml.c"
PROBE = "import json; from engine.facts.machine import probe; print(json.dumps(probe().to_json()))"


@pytest.fixture(scope="module")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libnvidia-ml.so.1 of two cards."""
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    compiler = require_program("gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return folder


def probe_in_child(folder: Path, **variables: str) -> Hardware:
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True
    )
    return Hardware.from_json(json.loads(done.stdout))


def test_reads_every_figure_of_a_card_that_gives_them(driver_folder: Path) -> None:
    gpu = probe_in_child(driver_folder).gpus[0]
    assert (gpu.name, gpu.uuid) == ("Fake Card A", "GPU-a")
    assert (gpu.total_bytes, gpu.free_bytes) == (24_000_000_000, 23_000_000_000)
    assert (gpu.pcie_generation, gpu.pcie_width) == (4, 16)
    assert (gpu.power_w, gpu.power_limit_w) == (75.5, 350.0)
    assert (gpu.clock_mhz, gpu.memory_clock_mhz) == (1980, 9501)
    assert gpu.process_bytes == 123_456_789


def test_figures_that_a_card_does_not_give_are_none(driver_folder: Path) -> None:
    gpu = probe_in_child(driver_folder).gpus[1]
    assert gpu.total_bytes == 8_000_000_000
    assert gpu.pcie_generation is None
    assert gpu.power_w is None
    assert gpu.process_bytes is None


def test_a_driver_that_does_not_start_means_no_gpus(driver_folder: Path) -> None:
    hardware = probe_in_child(driver_folder, FAKE_NVML_INIT_FAILS="1")
    assert hardware.gpus == ()
    assert hardware.driver is None


def test_reads_cpu_memory_and_disk_of_this_machine(tmp_path: Path) -> None:
    hardware = probe(tmp_path / "not" / "there" / "yet")
    assert hardware.cpu
    assert 0 < hardware.cores <= hardware.threads
    assert 0 < hardware.ram_available_bytes <= hardware.ram_bytes
    assert hardware.disk_free_bytes > 0
    assert hardware.disk_folder == str(tmp_path)


def test_survives_a_round_trip_through_json() -> None:
    hardware = probe()
    assert Hardware.from_json(json.loads(json.dumps(hardware.to_json()))) == hardware


def test_the_fingerprint_ignores_what_changes_from_day_to_day() -> None:
    hardware = probe()
    tomorrow = replace(hardware, ram_available_bytes=1, disk_free_bytes=1, kernel="9.9")
    assert tomorrow.fingerprint == hardware.fingerprint
    assert replace(hardware, threads=999).fingerprint != hardware.fingerprint
