"""What must not be left behind by a fault: temporary files, children, threads, file handles."""

import gc
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tuner.store.integrity.check import check_store

TEMPORARY = (".tmp", ".partial", ".part")
WAIT_S = 10.0


@dataclass(frozen=True)
class Held:
    """What this process holds now; a database server that tests started is none of it."""

    children: frozenset[int]
    threads: frozenset[str]
    handles: int

    @classmethod
    def now(cls) -> "Held":
        gc.collect()
        children = frozenset(
            child.pid
            for child in psutil.Process().children(recursive=True)
            if _name_of(child) not in ("postgres", "")
        )
        threads = frozenset(f"{t.name} {t.ident}" for t in threading.enumerate())
        return cls(children, threads, len(os.listdir("/proc/self/fd")))


def temporary_files(folder: Path) -> list[str]:
    """Files that a writer makes and moves, and folders of processes: none may outlast them."""
    found = []
    for path in folder.rglob("*"):
        hidden = path.name.startswith(".") and path.name != ".cache"
        scratch = path.parent.name == "scratch"
        if path.suffix in TEMPORARY or hidden or scratch:
            found.append(str(path.relative_to(folder)))
    return found


def check_nothing_left(before: Held, *folders: Path) -> None:
    """Fails if anything is held that was not before, or a temporary file lies in a folder."""
    until = time.monotonic() + WAIT_S
    while (left := _left(before)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left, left
    for folder in folders:
        assert temporary_files(folder) == []


def check_whole(store: Path | str) -> None:
    """The store, a file or a URL, is whole: every invariant holds."""
    url = f"sqlite:///{store}" if isinstance(store, Path) else store
    assert check_store(url).findings == ()


def check_undamaged(file: Path) -> None:
    """No invariant is broken but those that the next start mends."""
    if file.exists() and file.stat().st_size:
        damage = check_store(f"sqlite:///{file}").damage
        assert damage == (), damage


def _name_of(child: psutil.Process) -> str:
    try:
        return child.name()
    except psutil.NoSuchProcess:
        return ""


def _left(before: Held) -> list[str]:
    now = Held.now()
    found = [f"child {pid}" for pid in now.children - before.children]
    found += [f"thread {name}" for name in now.threads - before.threads]
    if now.handles > before.handles:
        found.append(f"{now.handles - before.handles} file handles")
    return found
