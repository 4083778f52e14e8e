"""Worker ids: host, pid and start time of a process, so that a reused pid is not mistaken for
it."""

from __future__ import annotations

import os
import socket

import psutil


def own_id() -> str:
    """The id of this process, as trials store it."""
    return id_of(os.getpid())


def id_of(pid: int) -> str:
    """The id of a process of this host, as trials store it."""
    return f"{socket.gethostname()} {pid} {int(psutil.Process(pid).create_time())}"


def is_gone(worker: str | None) -> bool:
    """Whether that worker certainly runs no more: it was on this host, and its process is gone.

    Workers on other hosts are checked by their heartbeats instead.
    """
    if worker is None:
        return True
    host, pid, began = worker.rsplit(" ", 2)
    if host != socket.gethostname():
        return False
    try:
        return int(psutil.Process(int(pid)).create_time()) != int(began)
    except psutil.NoSuchProcess:
        return True
