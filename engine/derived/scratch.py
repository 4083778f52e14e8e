"""Folders for large files of one process, removed at its end, or later if it was killed.

They lie in `scratch/` of the cache folder. A folder's name says whose it is: host, boot, namespace
of process ids, process id, start time. One whose process is gone is removed by the next that comes
by; one that cannot be judged from here, as of another container, is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

log = logging.getLogger(__name__)


@contextlib.contextmanager
def scratch_folder(cache_folder: Path) -> Iterator[Path]:
    """A new folder of this process during the block. Raises OSError if it cannot be made."""
    sweep_scratch(cache_folder)
    name = f"{'.'.join(_place())}.{os.getpid()}.{_start(os.getpid())}.{uuid.uuid4().hex[:8]}"
    folder = cache_folder / "scratch" / name
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(cache_folder: Path) -> None:
    """Remove the folders of processes that are gone."""
    with contextlib.suppress(OSError):
        for folder in (cache_folder / "scratch").iterdir():
            if _is_abandoned(folder.name):
                log.info("removing %s, which a killed process left", folder)
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(name: str) -> bool:
    fields = name.rsplit(".", 5)
    if len(fields) != 6 or not fields[3].isdigit():
        return False
    host, boot, namespace, pid, start, _ = fields
    here = _place()
    if (host, namespace) != (here[0], here[2]):
        return False
    return boot != here[1] or _start(int(pid)) != start


def _place() -> tuple[str, str, str]:
    """Host, boot, and namespace of process ids; the latter two are empty where /proc has none."""
    boot = namespace = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()[:8]
    with contextlib.suppress(OSError):
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    return socket.gethostname(), boot, namespace


def _start(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty if there is none.

    Not psutil's seconds, which move when the clock is set.
    """
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    with contextlib.suppress(psutil.Error):
        return str(int(psutil.Process(pid).create_time()))
    return ""
