"""The timing lock: only one process at a time measures on the CPU.

Workers of one study, and concurrent studies, would slow each other down several times over; a lock
in the cache folder orders them. Accelerators have their own (card_lock.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

POLL_S = 0.02


@contextlib.contextmanager
def timed_section(folder: Path, device: str) -> Iterator[None]:
    """Holds this machine's timing lock while something is timed on `device`.

    folder: the cache folder. The lock is released when the process dies. If it cannot be created (a
    read-only folder) the section runs without it.
    """
    if not needs_turn(device):
        yield
        return
    lock = FileLock(folder / "timed.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=POLL_S)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def needs_turn(device: str) -> bool:
    """Whether work on this device shares the CPU with what others time."""
    return device == "cpu" or device.startswith("emulated:")
