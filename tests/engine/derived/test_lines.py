"""Files that grow line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.derived.file import DerivedKind
from engine.derived.lines import LineFile

KIND = DerivedKind("test", 3)
VALUES = [{"a": 1}, ["b", None], "c\nd"]


@pytest.fixture
def lines(tmp_path: Path) -> LineFile:
    made = LineFile(tmp_path / "folder" / "lines", KIND)
    for value in VALUES:
        made.append(value)
    return made


def test_values_come_back_in_order(lines: LineFile) -> None:
    assert lines.read() == VALUES
    assert LineFile(lines.path, KIND).read() == VALUES


def test_a_missing_file_has_no_values(tmp_path: Path) -> None:
    assert LineFile(tmp_path / "none", KIND).read() == []


def test_a_torn_last_line_is_cut_off_without_a_word(
    lines: LineFile, caplog: pytest.LogCaptureFixture
) -> None:
    whole = lines.path.read_bytes()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        lines.path.write_bytes(whole[:-cut])
        assert lines.read() == VALUES[:2]
        lines.append(VALUES[2])
        assert lines.read() == VALUES
    assert caplog.text == ""


def test_every_flipped_bit_leaves_only_values_before_it(lines: LineFile) -> None:
    whole = lines.path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 4
        lines.path.write_bytes(changed)
        before = whole[:place].count(b"\n")
        assert lines.read() == VALUES[: max(0, before - 1)]
        if before:
            assert lines.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:before])


def test_damage_before_the_end_is_said_in_one_line(
    lines: LineFile, caplog: pytest.LogCaptureFixture
) -> None:
    lines.path.write_bytes(lines.path.read_bytes().replace(b'{"a": 1}', b'{"a": 2}'))
    assert lines.read() == []
    assert len(caplog.records) == 1
    assert "damaged from line 2 on" in caplog.text
    lines.append("x")
    assert lines.read() == ["x"]


@pytest.mark.parametrize("content", [b"", b'{"a": 1}\n', b"\xff\xfe"])
def test_what_an_earlier_release_wrote_is_dropped(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "lines"
    path.write_bytes(content)
    assert LineFile(path, KIND).read() == []
    assert not path.exists()
    assert len(caplog.records) == 1


def test_another_version_is_not_read(lines: LineFile) -> None:
    assert LineFile(lines.path, DerivedKind("test", 4)).read() == []


def test_two_that_begin_at_once_lose_nothing(lines: LineFile) -> None:
    header = lines.path.read_bytes().splitlines(keepends=True)[0]
    with lines.path.open("ab") as stream:
        stream.write(header)
    lines.append("more")
    assert lines.read() == [*VALUES, "more"]


def test_a_rewrite_replaces_all(lines: LineFile) -> None:
    lines.rewrite(["x"])
    assert lines.read() == ["x"]
