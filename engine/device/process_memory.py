"""This process as the kernel sees it: its memory, and the precision of its sleeps (Linux)."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_PR_SET_TIMERSLACK = 29
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Current resident set size."""
    found = _read_status("VmRSS")
    return int(psutil.Process().memory_info().rss) if found is None else found


def peak_resident_bytes() -> int:
    """Highest resident set size since the last reset_peak; since the process started on kernels
    whose /proc/self/status has no VmHWM (gVisor)."""
    found = _read_status("VmHWM")
    if found is not None:
        return found
    return max(resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def peak_source() -> str:
    """The name of the reading behind peak_resident_bytes."""
    return "ru_maxrss" if _read_status("VmHWM") is None else "VmHWM"


def reset_peak() -> bool:
    """Start a new peak reading; False if the kernel does not allow it, or keeps no peak."""
    if _read_status("VmHWM") is None:
        return False
    try:
        _CLEAR_REFS.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def trim() -> None:
    """Return the allocator's free pages to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def sleep_exactly() -> None:
    """Make sleeps of this thread and of the threads it starts accurate to microseconds, if the
    kernel allows it; the default slack is 50 us."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _read_status(field: str) -> int | None:
    """Bytes of a field, None if this kernel's status file lacks it or there is none."""
    try:
        for line in _STATUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
