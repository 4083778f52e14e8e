"""One timed section at a time on one processor: what measures here waits for its turn.

Workers of one study, and studies beside each other, would slow each other down several times over;
a lock in the cache folder orders them. Accelerators are each worker's own and need no turn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

POLL_S = 0.02


@contextlib.contextmanager
def timed_section(folder: Path, device: str) -> Iterator[None]:
    """Hold this machine's turn while something is timed on `device`.

    folder: the cache folder. Released when the process dies. Where the lock cannot be made (a
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
    """Whether what runs on this device shares the processor with what others time."""
    return device == "cpu" or device.startswith("emulated:")
