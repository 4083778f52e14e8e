"""Text of files as other systems write it."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.definition.text import join_surrogates, read_text, split_lines, split_words
from tuner.errors import DefinitionError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str):
    # Notepad saves UTF-8 with a mark, or UTF-16 as "Unicode" (microsoft/promptflow#3670)
    path = tmp_path / "t.txt"
    path.write_bytes("größer 木\r\n".encode(encoding))
    assert read_text(path) == "größer 木\r\n"


def test_what_is_not_text_is_said_with_its_line(tmp_path: Path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"one\ntwo\nk\xf6nnte\n")
    with pytest.raises(DefinitionError, match=r"line 3, is not text in UTF-8 \(byte 0xf6\)"):
        read_text(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("hello\r\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        (gzip.compress(b"a\n", mtime=0), "packed by gzip"),
        (b"PK\x03\x04\x14\x00", "zip archive or a spreadsheet"),
    ],
)
def test_what_is_packed_or_has_no_known_encoding_is_named(tmp_path: Path, data: bytes, says: str):
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(DefinitionError, match=says):
        read_text(path)


@pytest.mark.parametrize("name", ["absent", "."])
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str):
    with pytest.raises(DefinitionError, match="cannot be read"):
        read_text(tmp_path / name)


def test_only_line_endings_end_a_line():
    # str.splitlines splits at U+0085, U+2028 ... too (wbolster/jsonlines#53, huggingface/tau#354)
    text = "a\x85b\u2028c\u2029d\x0be\x0cf\x1cg"
    assert split_lines(f"{text}\r\n\n{text}\rlast") == [text, "", text, "last"]


def test_words_of_a_list_may_have_spaces():
    assert split_words(" 8, 4,16  2,, ") == ["8", "4", "16", "2"]


def test_pairs_are_joined_and_halves_refused():
    assert join_surrogates("a\ud83d\ude00b", "here") == "a\U0001f600b"
    with pytest.raises(DefinitionError, match=r"here holds \\ud83d, half of a surrogate pair"):
        join_surrogates("a\ud83d", "here")


@given(st.text())
def test_text_without_surrogates_is_unchanged(text: str):
    assert join_surrogates(text, "here") == text
