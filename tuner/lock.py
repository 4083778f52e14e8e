"""One parent a study: a file lock that the system releases when its holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from tuner.errors import StoreError, StudyError
from tuner.folders import data_folder


@contextlib.contextmanager
def study_lock(url: str, name: str) -> Iterator[None]:
    """Hold the study for this process; StudyError naming the process that has it."""
    path = _lock_path(url, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"the lock {path} cannot be made: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "another process"
            raise StudyError(
                f"study '{name}' is already running (process {holder}): wait for it, end it, or "
                "give this one another name with --study"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _lock_path(url: str, name: str) -> Path:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        database = Path(parsed.database or "").resolve()
        digest = hashlib.sha256(f"{database}\n{name}".encode()).hexdigest()[:16]
        return database.parent / "locks" / f"{digest}.lock"
    digest = hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()[:16]
    return data_folder() / "locks" / f"{digest}.lock"
