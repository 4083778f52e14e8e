"""Bounds a baseline's memory from outside: a separate memory cgroup, page cache included.

Memory that a process held before it moved stays charged to its former group, so a limit in the new
group counts only later memory: a budget on top of a baseline. Works with cgroup v1 and v2, as a
child of the process's own group; if that cannot be written, the baseline runs unbounded and its row
says so.
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
    """Limit this process to further_bytes of new memory. Yields how memory is bounded."""
    found = _own_group()
    if found is None:
        yield "not bounded: no memory cgroup"
        return
    parent, limit_name, usage_name = found
    _remove_abandoned(parent)
    group = parent / f"{_PREFIX}{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
        charged_bytes = int((group / usage_name).read_text(encoding="utf-8"))
        (group / limit_name).write_text(str(charged_bytes + further_bytes), encoding="utf-8")
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
        (parent / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
        group.rmdir()


def _remove_abandoned(parent: Path) -> None:
    """Remove groups of killed baselines, which could not remove them themselves."""
    for group in parent.glob(f"{_PREFIX}*"):
        if not Path("/proc", group.name.removeprefix(_PREFIX)).exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def _own_group() -> tuple[Path, str, str] | None:
    """This process's group, and the names of its files for the limit and for the charged memory."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory" and _V1.is_dir():
            own = _V1 / path.lstrip("/")
            where = own if own.is_dir() else _V1
            return where, "memory.limit_in_bytes", "memory.usage_in_bytes"
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers and (_V2 / "cgroup.controllers").is_file():
            return _V2 / path.lstrip("/"), "memory.max", "memory.current"
    return None


def drop_page_cache(folder: Path) -> None:
    """Drop a folder's files from the page cache: others' cached pages would be free to a group."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # dirty pages cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
