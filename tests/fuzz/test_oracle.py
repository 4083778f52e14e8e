"""The oracle finds what it looks for."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import CheckpointError
from tests.fuzz.documents import Raw, read_json, write
from tests.fuzz.mutations import SCALARS, swept
from tests.fuzz.oracle import LONGEST_SENTENCE, Arena, FindingError, Run, arena, hold
from tuner.errors import UsageError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Arena]:
    with arena(tmp_path) as found:
        yield found


def spins(data: bytes) -> None:
    while True:
        pass


def says_nothing(data: bytes) -> None:
    raise UsageError(" ")


def says_a_traceback(data: bytes) -> None:
    raise CheckpointError("Traceback (most recent call last)")


def writes_in_secret(data: bytes) -> None:
    with contextlib.suppress(OSError):
        Path("loose").write_text("x")


def removes_in_secret(data: bytes) -> None:
    shutil.rmtree("/usr/share/doc/nothing-of-this-name", ignore_errors=True)
    with contextlib.suppress(OSError):
        Path("/usr/nothing-of-this-name").unlink()


def starts_in_secret(data: bytes) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["true"])


def connects_in_secret(data: bytes) -> None:
    with contextlib.suppress(OSError):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)


def opens_in_secret(data: bytes) -> None:
    with contextlib.suppress(OSError):
        sqlite3.connect("file:///nothing-of-this-name.db?mode=rwc", uri=True)


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (opens_in_secret, "it tried: sqlite3.connect '/nothing-of-this-name.db'"),
        (spins, "takes more than 0.2 s"),
        (says_nothing, "says no sentence"),
        (says_a_traceback, "says no sentence"),
        (writes_in_secret, "it tried: open 'loose'"),
        (removes_in_secret, "it tried: os.remove"),
        (starts_in_secret, "it tried: subprocess.Popen"),
        (connects_in_secret, r"it tried: socket.connect \('192.0.2.1', 80\)"),
    ],
)
def test_what_none_may_do_is_found(place: Arena, run: Run, says: str) -> None:
    with pytest.raises(FindingError, match=says):
        hold(place, run, b"", most_s=0.2)
    assert place.loose() == set()


def test_what_wants_all_of_the_memory_gets_none(place: Arena) -> None:
    with pytest.raises(MemoryError):
        hold(place, lambda data: bytearray(64 << 30) and None, b"")


def test_errors_of_the_project_and_files_of_its_own_are_right(place: Arena) -> None:
    def right(data: bytes) -> None:
        (place.cache.parent / "kept").write_bytes(data)
        raise UsageError("x" * 10 * LONGEST_SENTENCE)  # whose message is cut

    hold(place, right, b"abc")
    assert (place.cache.parent / "kept").read_bytes() == b"abc"


def test_a_database_may_be_read(place: Arena) -> None:
    def reads(data: bytes) -> None:
        with contextlib.suppress(sqlite3.OperationalError):  # it is not there
            sqlite3.connect("file:///nothing-of-this-name.db?mode=ro", uri=True)

    hold(place, reads, b"")


def test_other_errors_are_not(place: Arena) -> None:
    with pytest.raises(KeyError):
        hold(place, lambda data: {}[data], b"")


def test_every_odd_value_comes_to_every_place() -> None:
    tree = read_json('{"a": [1, "x"]}')
    texts = {write(one) for one in swept([tree])}
    assert len(list(swept([tree]))) == 4 * len(SCALARS)  # a key, a list, two values
    assert {'{"a": [NaN, "x"]}', '{"a": [1, ]}', '{"~": [1, "x"]}', '{"a": null}'} <= texts
    assert write(Raw("as it is")) == "as it is"
