"""Reading ahead and writing behind: order, bounds, and errors that reach the caller."""

from __future__ import annotations

import errno
import io
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from engine.derived.lines import LineFile
from engine.experts.tiers.pack import PACK_JOURNAL
from engine.experts.tiers.packing import RecordWriter, experts_ahead, read_ahead


class Broken(Exception):
    """Stands for any failure."""


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def lines(path: Path) -> LineFile:
    return LineFile(path, PACK_JOURNAL)


def record(value: int, size_bytes: int = 4096) -> torch.Tensor:
    return torch.full((size_bytes,), value, dtype=torch.uint8)


@pytest.mark.parametrize("ahead", [0, 1, 3, 50])
def test_reads_come_in_order_and_not_too_early(ahead: int) -> None:
    begun: list[int] = []

    def read(number: int) -> Callable[[], int]:
        def run() -> int:
            begun.append(number)
            return number

        return run

    with read_ahead((read(number) for number in range(20)), ahead) as results:
        for taken, number in enumerate(results):
            assert number == taken
            assert len(begun) <= taken + 1 + ahead
    assert begun == list(range(20))


def test_an_error_of_a_read_comes_in_its_turn_and_ends_the_others() -> None:
    begun: list[int] = []

    def read(number: int) -> Callable[[], int]:
        def run() -> int:
            begun.append(number)
            if number == 3:
                raise Broken
            return number

        return run

    def take(count: int) -> None:
        with read_ahead((read(number) for number in range(count)), 2) as results:
            assert list(results) == list(range(count))

    with pytest.raises(Broken):
        take(50)
    assert len(begun) <= 6


def test_a_caller_that_stops_leaves_the_rest_unread() -> None:
    begun: list[int] = []

    def stop_early() -> None:
        with read_ahead((partial(begun.append, number) for number in range(50)), 2) as results:
            next(results)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_early()
    assert len(begun) <= 3


def test_fewer_large_experts_are_read_ahead() -> None:
    assert experts_ahead(1000) == 2
    assert experts_ahead(200_000_000) == 1
    assert experts_ahead(3_000_000_000) == 0


def test_records_and_journal_are_written_in_order(tmp_path: Path) -> None:
    records, journal = tmp_path / "records", tmp_path / "journal"
    with records.open("wb") as data, RecordWriter(data, lines(journal)) as writer:
        for layer in range(2):
            for number in range(5):
                writer.write(record(5 * layer + number))
            writer.finish_layer(layer)
    whole = records.read_bytes()
    assert [whole[number * 4096] for number in range(10)] == list(range(10))
    sums = [zlib.crc32(bytes([number]) * 4096) for number in range(10)]
    assert writer.checksums == sums
    assert lines(journal).read() == [
        {"layer": 0, "checksums": sums[:5]},
        {"layer": 1, "checksums": sums[5:]},
    ]


def test_what_was_handed_over_before_an_error_of_the_caller_is_written(tmp_path: Path) -> None:
    records, journal = tmp_path / "records", tmp_path / "journal"

    def stop_early() -> None:
        with (
            records.open("wb") as data,
            RecordWriter(data, lines(journal)) as writer,
        ):
            writer.write(record(1))
            writer.finish_layer(0)
            raise Broken

    with pytest.raises(Broken):
        stop_early()
    assert records.read_bytes() == b"\1" * 4096
    assert len(lines(journal).read()) == 1


def write_layer(writer: RecordWriter) -> None:
    with writer:
        for number in range(8):
            writer.write(record(number))
        writer.finish_layer(0)


class FullDisk(io.BytesIO):
    """Takes only so many records."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.tried = 0
        self._room = room

    def write(self, data: object) -> int:
        self.tried += 1
        if self.tried > self._room:
            raise OSError(errno.ENOSPC, "no space left")
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [0, 3, 7])
def test_a_full_disk_is_raised_in_the_caller_and_no_layer_is_claimed(
    room: int, tmp_path: Path
) -> None:
    data, journal = FullDisk(room), tmp_path / "journal"
    writer = RecordWriter(data, lines(journal))
    with pytest.raises(OSError, match="no space left"):
        write_layer(writer)
    assert data.tried == room + 1, "nothing is tried after the first failure"
    assert not journal.exists()
    assert writer.checksums == []


def test_a_failing_fsync_is_raised_in_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", fail)
    journal = tmp_path / "journal"
    with (tmp_path / "records").open("wb") as data:
        writer = RecordWriter(data, lines(journal))
        with pytest.raises(OSError, match="disk is broken"):
            write_layer(writer)
    assert not journal.exists()
