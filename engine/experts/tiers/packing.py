"""The stages of packing that run beside encoding: reading ahead, and writing behind.

Each has one thread and a bound on what waits, so that memory is that of a few experts. What fails
in a thread is raised in the caller, and neither outlives its `with` block.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, TypeVar

import torch

from engine.derived.lines import LineFile

Read = TypeVar("Read")
_AHEAD_BYTES = 256_000_000
_MOST_AHEAD = 2  # more only smooths what varies less than an expert takes
_RECORDS_BEHIND = 2


def experts_ahead(expert_bytes: int) -> int:
    """How many experts of this size are read before they are asked for."""
    return min(_MOST_AHEAD, _AHEAD_BYTES // expert_bytes)


@contextmanager
def read_ahead(reads: Iterable[Callable[[], Read]], ahead: int) -> Iterator[Iterator[Read]]:
    """The results of these reads in order, each begun while `ahead` others are still to be
    taken."""
    waiting: deque[Future[Read]] = deque()

    def results() -> Iterator[Read]:
        for read in reads:
            waiting.append(pool.submit(read))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    with ThreadPoolExecutor(1, "pack-read") as pool:
        try:
            yield results()
        finally:
            for future in waiting:
                future.cancel()


class RecordWriter:
    """Appends records and the journal's lines, in order and behind the caller.

    What is handed over before an error of the caller is still written. After an error of its own
    nothing is written any more, and the next call or the end of the block raises it. checksums:
    crc32 of the records of the layers that are safely on disk.
    """

    def __init__(self, records: BinaryIO, journal: LineFile) -> None:
        self.checksums: list[int] = []
        self._records, self._journal = records, journal
        self._layer_sums: list[int] = []
        self._failed = False
        self._pool = ThreadPoolExecutor(1, "pack-write")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:
            self._wait(0)

    def write(self, record: torch.Tensor) -> None:
        """Append a record, uint8 [record bytes], which must not change any more."""
        self._submit(lambda: self._write(record))

    def finish_layer(self, index: int) -> None:
        """The layer's records are all handed over: put them and its line safely on disk."""
        self._submit(lambda: self._finish(index))

    def _submit(self, step: Callable[[], None]) -> None:
        self._waiting.append(self._pool.submit(self._run, step))
        self._wait(_RECORDS_BEHIND)

    def _wait(self, most: int) -> None:
        while len(self._waiting) > most:
            self._waiting.popleft().result()

    def _run(self, step: Callable[[], None]) -> None:
        if self._failed:
            return
        self._failed = True  # unless it comes to its end
        step()
        self._failed = False

    def _write(self, record: torch.Tensor) -> None:
        data = memoryview(record.numpy())  # type: ignore[arg-type]
        self._records.write(data)
        self._layer_sums.append(zlib.crc32(data))

    def _finish(self, index: int) -> None:
        sync(self._records)
        os.posix_fadvise(self._records.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._journal.append({"layer": index, "checksums": self._layer_sums})
        self.checksums.extend(self._layer_sums)
        self._layer_sums = []


def sync(stream: IO[Any]) -> None:
    """Put what was written safely on disk."""
    stream.flush()
    os.fsync(stream.fileno())
