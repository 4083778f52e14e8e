"""Limits of containers, from the files of both kinds of memory cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.facts import memory_limit
from engine.facts.memory_limit import MemoryLimit, read_memory_limit, usable_memory

GB = 10**9


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / f"memory.{name}").write_text(f"{value}\n")


def limit(tmp_path: Path, own: str) -> MemoryLimit:
    (tmp_path / "own").write_text(own)
    return read_memory_limit(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize("path", ["/", "/../..", "/docker/of-the-host"])
def test_a_container_of_version_2_has_its_limit(tmp_path: Path, path: str) -> None:
    stat = "anon 5\ninactive_file 500000000\nactive_file 7"
    write(tmp_path / "cgroup", max=4 * GB, current=3 * GB, stat=stat)
    assert limit(tmp_path, f"0::{path}\n") == MemoryLimit(4 * GB, 1_500_000_000)


def test_the_smallest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(root / "slice" / "job", max="max", current=1 * GB)
    write(root / "slice", max=8 * GB, high=6 * GB, current=2 * GB)
    write(root, max=32 * GB, current=30 * GB)
    assert limit(tmp_path, "0::/slice/job\n") == MemoryLimit(6 * GB, 2 * GB)


@pytest.mark.parametrize("path", ["/docker/abc", "/elsewhere"])
def test_a_container_of_version_1_has_its_limit(tmp_path: Path, path: str) -> None:
    group = tmp_path / "cgroup" / "memory"
    unlimited = 9223372036854771712
    write(group, limit_in_bytes=unlimited, usage_in_bytes=20 * GB)
    own = group / "docker" / "abc" if path == "/docker/abc" else group
    write(own, limit_in_bytes=2 * GB, usage_in_bytes=GB, stat=f"total_inactive_file {GB // 2}")
    text = f"12:cpu,cpuacct:{path}\n7:memory:{path}\n0::/\n"
    assert limit(tmp_path, text) == MemoryLimit(2 * GB, GB + GB // 2)


@pytest.mark.parametrize("own", ["", "garbage", "0::/\n", "7:memory:/\n", "1:name=systemd:/x\n"])
def test_a_kernel_without_them_has_no_limit(tmp_path: Path, own: str) -> None:
    assert limit(tmp_path, own) == MemoryLimit()
    assert read_memory_limit(tmp_path / "no", tmp_path / "none") == MemoryLimit()


def test_garbage_in_a_file_is_no_limit(tmp_path: Path) -> None:
    write(tmp_path / "cgroup", max="many", current="?", stat="inactive_file x")
    assert limit(tmp_path, "0::/\n") == MemoryLimit()


def test_the_machine_is_bounded_by_it() -> None:
    assert MemoryLimit(4 * GB, GB).apply(64 * GB, 60 * GB) == (4 * GB, GB)
    assert MemoryLimit(4 * GB, 3 * GB).apply(64 * GB, 2 * GB) == (4 * GB, 2 * GB)
    assert MemoryLimit().apply(64 * GB, 60 * GB) == (64 * GB, 60 * GB)


@pytest.mark.parametrize("error", [KeyError("MemTotal:"), IndexError(), FileNotFoundError()])
def test_a_kernel_without_meminfo_still_has_a_memory(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # sandboxes that mask /proc/meminfo: psutil raises KeyError
    def fail() -> None:
        raise error

    monkeypatch.setattr(memory_limit.psutil, "virtual_memory", fail)
    total, available = usable_memory()
    assert 0 < available <= total
