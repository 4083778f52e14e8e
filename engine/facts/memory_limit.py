"""The memory that this process may use: the machine's, or less inside a container.

Reads memory cgroups v1 and v2 from the process's own group up to the root that is mounted: the
smallest limit counts. A kernel without them has no limit.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # v1 writes almost 2^63 where there is no limit


@dataclass(frozen=True)
class MemoryLimit:
    """limit_bytes: the smallest limit of a group; free_bytes: what it leaves, not counting cached
    files that the kernel can drop. None: no limit."""

    limit_bytes: int | None = None
    free_bytes: int | None = None

    def apply(self, total_bytes: int, available_bytes: int) -> tuple[int, int]:
        """The machine's total and available memory, bounded by the limit."""
        if self.limit_bytes is None or self.free_bytes is None:
            return total_bytes, available_bytes
        return min(total_bytes, self.limit_bytes), min(available_bytes, self.free_bytes)


def usable_memory() -> tuple[int, int]:
    """Total and available bytes of this process: the machine's, bounded by its container's limit.

    Where /proc/meminfo cannot be read or lacks its fields, what the kernel's sysinfo tells.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # psutil's, on fields that nobody asks for
            memory = psutil.virtual_memory()
        total, available = memory.total, memory.available
    except (OSError, LookupError, ValueError):
        page = os.sysconf("SC_PAGE_SIZE")
        total, available = (page * os.sysconf(f"SC_{name}PHYS_PAGES") for name in ("", "AV"))
    return read_memory_limit().apply(total, available)


@dataclass(frozen=True)
class _Names:
    limits: tuple[str, ...]
    usage: str
    cached: str


_V1 = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names(("memory.max", "memory.high"), "memory.current", "inactive_file")


def read_memory_limit(groups: Path = GROUPS, own: Path = OWN) -> MemoryLimit:
    """The limit of this process's memory cgroups. Never raises."""
    limits: list[int] = []
    free: list[int] = []
    for group, names in _groups(groups, own):
        for name in names.limits:
            limit = _number(group / name)
            if limit is not None and limit < _UNLIMITED:
                used = (_number(group / names.usage) or 0) - _cached_bytes(group, names.cached)
                limits.append(limit)
                free.append(max(0, limit - max(0, used)))
    return MemoryLimit(min(limits, default=None), min(free, default=None))


def _groups(groups: Path, own: Path) -> Iterator[tuple[Path, _Names]]:
    """The memory groups of this process with their parents, up to the mounted root."""
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = own.read_text(encoding="utf-8")
    for line in text.splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if "memory" in controllers.split(","):
            yield from ((one, _V1) for one in _upwards(groups / "memory", path))
        elif number == "0" and not controllers:
            yield from ((one, _V2) for one in _upwards(groups, path))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """A container that sees the host's path has its own group mounted as the root."""
    inside = path.lstrip("/")
    group = root / inside
    if ".." in inside or not group.is_dir():
        group = root
    while group != root:
        yield group
        group = group.parent
    yield root


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _cached_bytes(group: Path, name: str) -> int:
    try:
        for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
