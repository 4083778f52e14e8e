"""Bounding a baseline's memory from outside: a memory cgroup of its own, page cache included.

What a process held before it moved stays charged to the group that it came from, so a limit in the
new group counts only what comes later: a budget beyond a baseline. Works with cgroup v1 and v2, as
a child of the process's own group; where that cannot be written the baseline runs unbounded and its
row says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_PREFIX = "expertune-baseline-"


@contextlib.contextmanager
def bounded_memory(further_bytes: int) -> Iterator[str]:
    """Let this process take at most further_bytes from now on. Yields how memory is bounded."""
    found = _own_group()
    if found is None:
        yield "not bounded: no memory cgroup"
        return
    parent, limit_name, usage_name = found
    _remove_abandoned(parent)
    group = parent / f"{_PREFIX}{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
        charged_bytes = int((group / usage_name).read_text())
        (group / limit_name).write_text(str(charged_bytes + further_bytes))
    except OSError as error:
        _leave(group, parent)
        yield f"not bounded: {error.strerror}"
        return
    try:
        yield f"cgroup {limit_name}"
    finally:
        _leave(group, parent)


def _leave(group: Path, parent: Path) -> None:
    with contextlib.suppress(OSError):
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def _remove_abandoned(parent: Path) -> None:
    """Groups of baselines that were killed, so could not remove them."""
    for group in parent.glob(f"{_PREFIX}*"):
        if not Path("/proc", group.name.removeprefix(_PREFIX)).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _own_group() -> tuple[Path, str, str] | None:
    """This process's group, and the files there that hold the limit and what is charged."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory" and _V1.is_dir():
            own = _V1 / path.lstrip("/")
            where = own if own.is_dir() else _V1
            return where, "memory.limit_in_bytes", "memory.usage_in_bytes"
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers and (_V2 / "cgroup.controllers").is_file():
            return _V2 / path.lstrip("/"), "memory.max", "memory.current"
    return None


def drop_page_cache(folder: Path) -> None:
    """Forget cached pages of a folder's files: pages that others cached are free to a group."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages that wait to be written cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
