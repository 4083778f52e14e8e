"""The reader and the writer of derived files."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from engine.derived.file import (
    DerivedKind,
    is_whole,
    load,
    load_json,
    read,
    read_named,
    save_json,
    seal,
    verify,
    writing,
)
from engine.errors import UnreadableError

KIND = DerivedKind("test", 3)
KEPT = DerivedKind("test", 3, "make it yourself", kept_aside=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file"


def write(path: Path, content: bytes = b"content") -> None:
    with writing(path, KIND) as stream:
        stream.write(content)


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 9000, b'\n{"expertune": "'])
def test_content_comes_back(path: Path, content: bytes) -> None:
    write(path, content)
    assert read(path, KIND) == content
    assert path.read_bytes().startswith(content)


def test_every_flipped_bit_is_found(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            with pytest.raises(UnreadableError):
                verify(path, KIND)


def test_every_cut_is_found(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableError):
            read(path, KIND)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [(DerivedKind("test", 4), "of version 3, this release reads 4"), (DerivedKind("p", 3), "kind")],
)
def test_another_kind_or_version_is_not_taken(
    path: Path, other: DerivedKind, sentence: str
) -> None:
    write(path)
    with pytest.raises(UnreadableError, match=sentence):
        read(path, other)


def test_a_damaged_file_is_dropped_in_one_line(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    assert load(path, KIND, bytes) is None
    assert not path.exists()
    assert len(caplog.records) == 1
    assert "the test" in caplog.text
    assert "checksum does not match" in caplog.text
    assert "it is made again" in caplog.text
    assert load(path, KIND, bytes) is None
    assert len(caplog.records) == 1, "a missing file is nothing to say"


def test_what_cannot_be_made_again_is_moved_aside(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"former")
    assert not is_whole(path, KEPT)
    assert path.with_name("file.damaged").read_bytes() == b"former"
    assert "make it yourself" in caplog.text


def test_whole_content_that_nobody_understands_is_dropped(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_json(path, KIND, {"a": 1})
    assert load_json(path, KIND, lambda value: value["b"]) is None
    assert "not what this release expects (KeyError" in caplog.text
    assert not path.exists()


def test_a_folder_in_its_place_is_said_and_left(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.mkdir(parents=True)
    assert load(path, KIND, bytes) is None
    assert "Is a directory" in caplog.text
    assert path.is_dir()


def test_a_named_file_without_a_checksum_is_read_but_not_with_a_wrong_one(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"by hand")
    assert read_named(path, KIND) == b"by hand"
    write(path)
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(UnreadableError):
        read_named(path, KIND)
    assert path.exists()


def test_a_failing_write_leaves_the_former_file(path: Path) -> None:
    write(path, b"former")

    def fail() -> None:
        with writing(path, KIND) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read(path, KIND) == b"former"
    assert list(path.parent.iterdir()) == [path]


def test_file_and_folder_are_on_disk_before_it_is_done(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def note(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append(f"{kind} {path.exists()}")

    monkeypatch.setattr(os, "fsync", note)
    write(path)
    assert synced == ["file False", "folder True"]
    path.unlink()
    synced.clear()
    partial = path.with_name("partial")
    partial.write_bytes(b"mapped")
    seal(partial, path, KIND)
    assert synced == ["file False", "folder True"]
    assert read(path, KIND) == b"mapped"


def test_json_is_still_json_but_for_the_last_line(path: Path) -> None:
    save_json(path, KIND, {"a": [1, 2]})
    content, _, last = path.read_text().rstrip("\n").rpartition("\n")
    assert json.loads(content) == {"a": [1, 2]}
    assert json.loads(last)["expertune"] == "test"
