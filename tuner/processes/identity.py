"""Who runs a trial: host, process and when that process began, so that a number used again is not
taken for it."""

from __future__ import annotations

import os
import socket

import psutil


def own_id() -> str:
    """This process, as trials keep it."""
    return id_of(os.getpid())


def id_of(pid: int) -> str:
    """A process of this host, as trials keep it."""
    return f"{socket.gethostname()} {pid} {int(psutil.Process(pid).create_time())}"


def is_gone(worker: str | None) -> bool:
    """Whether that worker surely runs no more: it was on this host, and its process is not there.

    What runs on another host is not known here; its heartbeat says.
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
