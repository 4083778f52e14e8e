"""Facts of this machine: CPU, memory, disk and NVIDIA GPUs, read through psutil and NVML.

In: the cache folder whose disk counts. Out: a frozen Hardware. A machine without a driver has no
GPUs; a value that a driver does not report is None. No torch: it names other accelerators.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pynvml

from engine.files import json_digest

T = TypeVar("T")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU; a value is None if the driver does not report it (as under WSL).

    process_bytes: memory that this process holds on it, the CUDA context included.
    """

    index: int
    name: str
    uuid: str | None
    total_bytes: int | None
    free_bytes: int | None
    pcie_generation: int | None
    pcie_width: int | None
    power_w: float | None
    power_limit_w: float | None
    clock_mhz: int | None
    memory_clock_mhz: int | None
    process_bytes: int | None


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

    disk_folder: a folder on the file system whose free space counts (default: the home folder); it
    need not exist yet. Takes some milliseconds, never raises for lack of a GPU.
    """
    folder = _existing(disk_folder or Path.home())
    memory = psutil.virtual_memory()
    driver, gpus = _probe_gpus()
    release = platform.release()
    return Hardware(
        cpu=_cpu_name(),
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        threads=os.cpu_count() or 1,
        ram_bytes=memory.total,
        ram_available_bytes=memory.available,
        system=platform.system(),
        kernel=release,
        wsl="microsoft" in release.lower(),
        disk_folder=str(folder),
        disk_free_bytes=shutil.disk_usage(folder).free,
        driver=driver,
        gpus=gpus,
    )


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _probe_gpus() -> tuple[str | None, tuple[Gpu, ...]]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, ()
    try:
        count = _read(pynvml.nvmlDeviceGetCount) or 0
        gpus = [_read_gpu(index) for index in range(count)]
        driver = _read(pynvml.nvmlSystemGetDriverVersion)
        return driver, tuple(gpu for gpu in gpus if gpu is not None)
    finally:
        pynvml.nvmlShutdown()


def _read_gpu(index: int) -> Gpu | None:
    device = _read(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if device is None:
        return None

    def read(name: str, *arguments: Any) -> Any:
        return _read(lambda: getattr(pynvml, name)(device, *arguments))

    memory = read("nvmlDeviceGetMemoryInfo")
    power_mw, limit_mw = read("nvmlDeviceGetPowerUsage"), read("nvmlDeviceGetEnforcedPowerLimit")
    return Gpu(
        index=index,
        name=str(read("nvmlDeviceGetName") or "unnamed GPU"),
        uuid=read("nvmlDeviceGetUUID"),
        total_bytes=None if memory is None else int(memory.total),
        free_bytes=None if memory is None else int(memory.free),
        pcie_generation=read("nvmlDeviceGetCurrPcieLinkGeneration"),
        pcie_width=read("nvmlDeviceGetCurrPcieLinkWidth"),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        clock_mhz=read("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_SM),
        memory_clock_mhz=read("nvmlDeviceGetClockInfo", pynvml.NVML_CLOCK_MEM),
        process_bytes=_process_bytes(read("nvmlDeviceGetComputeRunningProcesses")),
    )


def _process_bytes(processes: list[Any] | None) -> int | None:
    """Bytes used by this process: 0 if the driver lists others only, None if it lists nothing."""
    if processes is None:
        return None
    for process in processes:
        if process.pid == os.getpid():
            return None if process.usedGpuMemory is None else int(process.usedGpuMemory)
    return 0


def _read(call: Callable[[], T]) -> T | None:
    """The value, or None if this driver or card does not report it."""
    try:
        return call()
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True)
class MachineProfile:
    """Measured speeds of this machine.

    read_bytes_per_s: by record size (bytes as text) at the given queue depth; memory_bytes_per_s:
    one large copy; kernel_ms: of one product with a 1024 x 1024 matrix, by `bits/tokens`;
    small_kernel_ms: with a 128 x 128 one, which is the fixed cost of a product; crossover_tokens:
    up to how many tokens the packed 4-bit product is faster than dequantizing, None if there is no
    such product.

    By chunk size, if slots lie in host memory: busy_read_bytes_per_s, of the engine's reads while a
    product runs; read_slowdown, the factor by which that product slows down meanwhile.
    """

    read_bytes_per_s: dict[str, float]
    memory_bytes_per_s: float
    link_bytes_per_s: float | None
    kernel_ms: dict[str, float] = field(default_factory=dict)
    crossover_tokens: int | None = None
    busy_read_bytes_per_s: dict[str, float] = field(default_factory=dict)
    read_slowdown: dict[str, float] = field(default_factory=dict)
    small_kernel_ms: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)
