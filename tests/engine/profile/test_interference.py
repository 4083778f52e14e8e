"""Reads and products at the same time: what is counted, and what is not hidden."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.device.cpu import CpuDevice
from engine.errors import CheckpointError
from engine.profile import interference
from engine.profile.interference import measure_interference

CHUNK = 16 << 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.write_bytes(os.urandom(64 * CHUNK))
    return path


def test_reads_go_on_while_products_run(file: Path):
    found = measure_interference(CpuDevice(), file, CHUNK, lambda: time.sleep(1e-3))
    # the threads read a chunk or more in each millisecond that the product only waits
    assert found.bytes_per_s > CHUNK / 2e-3
    assert 1.0 <= found.slowdown < 10


def test_a_product_that_takes_longer_beside_reads_is_slowed_by_as_much(
    file: Path, monkeypatch: pytest.MonkeyPatch
):
    """Time passes for products alone: a second each, three beside reads."""
    now = [0.0]
    monkeypatch.setattr(interference, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    reading = [False]
    beside_reads = interference._beside_reads

    def beside(*arguments: Any) -> tuple[float, float]:
        reading[0] = True
        found = beside_reads(*arguments)
        reading[0] = False
        return found

    def product() -> None:
        now[0] += 3.0 if reading[0] else 1.0

    monkeypatch.setattr(interference, "_beside_reads", beside)
    assert measure_interference(CpuDevice(), file, CHUNK, product).slowdown == pytest.approx(3.0)


def test_a_failing_disk_is_no_slow_disk(file: Path):
    with file.open("ab") as end:
        end.truncate(CHUNK + CHUNK // 2)
    with pytest.raises(CheckpointError, match="truncated"):
        measure_interference(CpuDevice(), file, 4 * CHUNK, lambda: time.sleep(1e-4))
