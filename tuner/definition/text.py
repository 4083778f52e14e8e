"""Reads the text of files that people made by hand or downloaded, on any system.

UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one (as Windows saves them).
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from engine.inputs.bounds import read_bounded
from tuner.errors import DefinitionError, UsageError

# UTF-32's mark begins with UTF-16's, so it comes first.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What such files hold instead of text, by their first bytes, and what to do about it.
_OTHERS = (
    (b"\x1f\x8b", "is packed by gzip: unpack it first (gunzip)"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet: unpack it, or export it as CSV in UTF-8"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd: unpack it first (unzstd)"),
    (b"version https://git-lfs.github.com/spec/", "is a pointer of git-lfs: run `git lfs pull`"),
)
MOST_TEXT_BYTES = 1 << 30  # downloaded conversations have hundreds of megabytes
_NEWLINE = re.compile(r"\r\n|\n|\r")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_text(
    path: Path, error: type[UsageError] = DefinitionError, most_bytes: int = MOST_TEXT_BYTES
) -> str:
    """The text of a file without its byte order mark.

    Raises `error` with one sentence if it cannot be read, is larger than most_bytes or is not text;
    it names the line.
    """
    try:
        data = read_bounded(path, most_bytes)
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{path} cannot be read: {why}") from None
    if (what := _other_kind(data)) is not None:
        raise error(f"{path} {what}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as problem:
        line = data[: problem.start].count(b"\n") + 1
        raise error(
            f"{path}, line {line}, is not text in UTF-8 (byte 0x{data[problem.start]:02x}): save "
            "it as UTF-8"
        ) from None


def _other_kind(data: bytes) -> str | None:
    """What a file is, if it is no text, or text whose encoding cannot be told."""
    if found := next((what for begin, what in _OTHERS if data.startswith(begin)), None):
        return found
    marked = any(data.startswith(mark) for mark, _ in _MARKS)
    if not marked and data.count(0) * 4 > len(data):  # read as UTF-8, every second one is NUL
        return "is UTF-16 without a byte order mark, or no text: save it as UTF-8"
    return None


def split_lines(text: str) -> list[str]:
    r"""Lines as files have them: ended by \n, \r\n or \r alone.

    str.splitlines() also splits at U+0085, U+2028 and others, which JSON and people's texts hold
    inside a line.
    """
    return _NEWLINE.split(text)


def split_words(text: str) -> list[str]:
    """The words of a list by commas or spaces, such as `8, 4`; empty ones are dropped."""
    return [word for word in re.split(r"[\s,]+", text) if word]


def join_surrogates(text: str, place: str, error: type[UsageError] = DefinitionError) -> str:
    """The text with surrogate pairs joined to characters, as YAML's `"\\ud83d\\ude00"` needs it.

    Raises `error` naming the place if half of a pair is left, which is no character and which no
    tokenizer, database or UTF-8 file can hold.
    """
    if not (found := _SURROGATE.search(text)):
        return text
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise error(
            f"{place} holds \\u{ord(found.group()):x}, half of a surrogate pair, which is no "
            "character: the text was cut or wrongly converted; write it again"
        ) from None
