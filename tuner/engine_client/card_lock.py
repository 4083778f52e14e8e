"""The lock of an accelerator: commands of one user take turns on a card.

Whatever computes on a card holds its lock meanwhile, so that no study measures what another one
loads. It is a file in the cache folder by the card's UUID, whatever number CUDA gives the card, and
is released when the process dies. Serving takes no turn: two servers may share a card.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tuner.errors import WorkerError

log = logging.getLogger(__name__)

POLL_S = 0.1
SILENT_S = 2.0
WAIT_S = 3600.0


@contextlib.contextmanager
def card_section(
    folder: Path, device: str, card: str, silent_s: float = SILENT_S, wait_s: float = WAIT_S
) -> Iterator[None]:
    """Holds the card's lock while something computes on it.

    folder: the cache folder; device: its name, for people; card: its UUID. After silent_s one line
    says who holds the lock; after wait_s more, WorkerError. If the lock cannot be created (a
    read-only folder) the section runs without it.
    """
    path = folder / "cards" / f"{re.sub(r'[^A-Za-z0-9-]', '_', card)}.lock"
    lock, holder = FileLock(path), path.with_suffix(".holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, holder, device, silent_s, wait_s)
        holder.write_text(f"{os.getpid()} {_own_command()}", encoding="utf-8")
    except OSError:
        lock.release()
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, holder: Path, device: str, silent_s: float, wait_s: float) -> None:
    try:
        lock.acquire(timeout=silent_s, poll_interval=POLL_S)
    except Timeout:
        log.warning("waiting for %s: %s computes on it", device, _read_holder(holder))
    else:
        return
    try:
        lock.acquire(timeout=wait_s, poll_interval=POLL_S)
    except Timeout:
        raise WorkerError(
            f"{device} was not free for {wait_s:.0f} s: {_read_holder(holder)} computes on it; end "
            "that, or choose another card with --device",
            "timeout",
        ) from None


def _own_command() -> str:
    return shlex.join(["tune", *sys.argv[1:]])[:80]


def _read_holder(holder: Path) -> str:
    """The command and the number of the process that took the lock last."""
    try:
        number, _, command = holder.read_text(encoding="utf-8").partition(" ")
    except (OSError, UnicodeDecodeError):
        return "another command"
    return f"`{command}` (process {number})"
