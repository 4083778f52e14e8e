"""Reads record bytes from files: with O_DIRECT if the folder allows it, else buffered and dropped.

Either way nothing stays in the page cache, so the disk tier takes no hidden memory.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import CheckpointError
from engine.types import DirectName

ALIGN = 4096


@dataclass(frozen=True)
class Extent:
    """A byte range of a record in a file. record_offset: its position in the record."""

    file: int
    offset: int
    record_offset: int
    size_bytes: int


class DiskReader:
    """Open files of one folder, read by several threads.

    direct: auto probes O_DIRECT; on raises CheckpointError if it does not work.
    """

    def __init__(self, files: Sequence[Path], direct: DirectName) -> None:
        self.files = list(files)
        self.direct = direct != "off" and probe_direct(self.files[0])
        if direct == "on" and not self.direct:
            raise CheckpointError(
                f"{self.files[0].parent} does not allow O_DIRECT: set io.direct to auto or off"
            )
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if self.direct else 0)
        self._descriptors = [os.open(file, flags) for file in self.files]

    def scratch_bytes(self, size_bytes: int) -> int:
        """Bytes of scratch that an unaligned read of this size may need."""
        return (size_bytes + 2 * ALIGN - 1) // ALIGN * ALIGN + ALIGN

    def read(self, extent: Extent, target: memoryview, scratch: memoryview) -> None:
        """Fill `target` (len = extent.size_bytes) from the file.

        target and scratch: host memory; scratch is page-aligned. An aligned extent is read directly
        into an aligned target, any other through scratch. Raises CheckpointError on a short file.
        """
        if not self.direct:
            self._read_all(extent.file, extent.offset, target)
            descriptor = self._descriptors[extent.file]
            os.posix_fadvise(descriptor, extent.offset, extent.size_bytes, os.POSIX_FADV_DONTNEED)
            return
        if not (extent.offset | extent.size_bytes) % ALIGN:
            address = np.frombuffer(target, dtype=np.uint8).ctypes.data
            if not address % ALIGN:
                self._read_all(extent.file, extent.offset, target)
                return
        start = extent.offset // ALIGN * ALIGN
        lead = extent.offset - start
        span = (lead + extent.size_bytes + ALIGN - 1) // ALIGN * ALIGN
        self._read_all(extent.file, start, scratch[:span], needed=lead + extent.size_bytes)
        source = np.frombuffer(scratch, dtype=np.uint8)
        # numpy's copy releases the GIL and starts no threads of its own.
        np.copyto(np.frombuffer(target, dtype=np.uint8), source[lead : lead + extent.size_bytes])

    def close(self) -> None:
        """Close all files."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _read_all(
        self, file: int, offset: int, view: memoryview, needed: int | None = None
    ) -> None:
        needed = len(view) if needed is None else needed
        done = 0
        while done < needed:
            count = os.preadv(self._descriptors[file], [view[done:]], offset + done)
            reached = done + count
            if reached < needed and self.direct:
                reached = reached // ALIGN * ALIGN  # O_DIRECT needs aligned restarts
            if reached <= done:
                raise CheckpointError(f"{self.files[file]} ends early: it was truncated")
            done = reached


def probe_direct(file: Path) -> bool:
    """Whether this file's folder allows O_DIRECT reads."""
    page = mmap.mmap(-1, ALIGN)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except (OSError, AttributeError):
        return False
    try:
        os.preadv(descriptor, [page], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
