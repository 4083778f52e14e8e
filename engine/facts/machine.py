"""Facts of this machine: CPU, memory, disk and NVIDIA GPUs.

In: the cache folder whose disk counts. Out: a frozen Hardware. Inside a container the memory is
what its limit leaves. No torch: it names other accelerators.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from engine.facts.cards import Gpu, read_cards
from engine.facts.memory_limit import usable_memory
from engine.files import json_digest


@dataclass(frozen=True)
class Hardware:
    """One machine at one point in time."""

    cpu: str
    cores: int
    threads: int
    ram_bytes: int
    ram_available_bytes: int
    system: str
    kernel: str
    wsl: bool
    disk_folder: str
    disk_free_bytes: int
    driver: str | None
    gpus: tuple[Gpu, ...]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the properties that do not change from day to day."""
        lasting = {
            "cpu": self.cpu,
            "threads": self.threads,
            "ram_gib": round(self.ram_bytes / 2**30),
            "system": self.system,
            "gpus": [[gpu.name, gpu.total_bytes] for gpu in self.gpus],
        }
        return json_digest(lasting)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, with the fingerprint."""
        return {
            **asdict(self),
            "gpus": [asdict(g) for g in self.gpus],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Hardware:
        """Inverse of to_json."""
        rest = {key: value for key, value in data.items() if key != "fingerprint"}
        return cls(**{**rest, "gpus": tuple(Gpu(**gpu) for gpu in data["gpus"])})


def probe(disk_folder: Path | None = None) -> Hardware:
    """Read this machine.

    disk_folder: a folder on the file system whose free space counts (default: the working folder);
    it need not exist yet. Takes some milliseconds, never raises for lack of a GPU.
    """
    folder = _existing(disk_folder or Path.cwd())
    ram_bytes, available_bytes = usable_memory()
    driver, gpus = read_cards()
    release = platform.release()
    return Hardware(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=os.cpu_count() or 1,
        ram_bytes=ram_bytes,
        ram_available_bytes=available_bytes,
        system=platform.system(),
        kernel=release,
        wsl="microsoft" in release.lower(),
        disk_folder=str(folder),
        disk_free_bytes=shutil.disk_usage(folder).free,
        driver=driver,
        gpus=gpus,
    )


def _existing(folder: Path) -> Path:
    # unlike Path.exists, False too for a folder that may not be entered
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return folder


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


@dataclass(frozen=True)
class MachineProfile:
    """Measured speeds of this machine with one device.

    read_bytes_per_s: by record size (bytes as text) at the given queue depth; memory_bytes_per_s:
    one large copy; kernel_ms: of one product with a 1024 x 1024 matrix, by `product_key/tokens`;
    small_kernel_ms: with a 128 x 128 one, which is the fixed cost of a product; crossover_tokens:
    up to how many tokens the packed product is faster than a GEMM with plain weights, by bits, as
    far as there is such a product; both by engine.types.product_key; products:
    which products and how many threads these are.

    By chunk size, if slots lie in host memory: busy_read_bytes_per_s, of the engine's reads while a
    product runs; read_slowdown, the factor by which that product slows down meanwhile.

    host_kernel_ms, host_small_kernel_ms: as kernel_ms, of the processor beside a device that
    multiplies itself; empty where the kernels above are the processor's.
    """

    read_bytes_per_s: dict[str, float]
    memory_bytes_per_s: float
    link_bytes_per_s: float | None
    kernel_ms: dict[str, float] = field(default_factory=dict)
    crossover_tokens: dict[str, int] = field(default_factory=dict)
    products: str = ""
    busy_read_bytes_per_s: dict[str, float] = field(default_factory=dict)
    read_slowdown: dict[str, float] = field(default_factory=dict)
    small_kernel_ms: dict[str, float] = field(default_factory=dict)
    host_kernel_ms: dict[str, float] = field(default_factory=dict)
    host_small_kernel_ms: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)
