"""Derived files: written atomically with a checksum, dropped with one log line if damaged.

A file is its content, which other programs read as ever (JSON, .npz, .npy), and a last line that
holds its kind, its version and the SHA-256 of the content. Whoever reads gets the content as it was
written, or learns that there is none.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from engine.errors import UnreadableError
from engine.files import replacing, sync_folder

log = logging.getLogger(__name__)

T = TypeVar("T")
_SEAL = re.compile(
    rb'\n\{"expertune": "([^"\n]*)", "version": (\d+), "sha256": "([0-9a-f]{64})"\}\n\Z'
)
_TAIL_BYTES = 256  # more than any seal
_NO_SEAL = "it has no checksum: it was cut short, or an earlier release wrote it"
CONTENT_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What a parser raises about content that is whole but not what it expects."""


@dataclass(frozen=True)
class DerivedKind:
    """A kind of derived file. name: for messages; version: of its content; remedy: what happens
    once it is dropped; kept_aside: it cannot be made again from what is here, so a damaged one is
    renamed to NAME.damaged, and one without a checksum is still read."""

    name: str
    version: int
    remedy: str = "it is made again"
    kept_aside: bool = False

    def seal(self, digest: str) -> bytes:
        """The last line of a file of this kind whose content has this SHA-256."""
        return (
            f'\n{{"expertune": "{self.name}", "version": {self.version}, "sha256": "{digest}"}}\n'
        ).encode()


@contextlib.contextmanager
def writing(path: Path, kind: DerivedKind) -> Iterator[IO[bytes]]:
    """A stream for the content of a file that replaces `path` when the block ends without an error.

    Raises OSError.
    """
    with replacing(path) as stream:
        yield stream
        _append_seal(stream, kind)


def seal(partial: Path, path: Path, kind: DerivedKind) -> None:
    """Complete a file that was written as `partial`, and move it to `path`. Raises OSError."""
    with partial.open("r+b") as stream:
        _append_seal(stream, kind)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def verify(path: Path, kind: DerivedKind) -> None:
    """Check a file of this kind without holding it in memory.

    Raises FileNotFoundError if it is missing, UnreadableError if it is not whole.
    """
    with _open(path, kind) as stream:
        _check(stream, path, kind)


def read(path: Path, kind: DerivedKind) -> bytes:
    """The content of a file of this kind. Raises what `verify` does."""
    with _open(path, kind) as stream:
        content_bytes = _check(stream, path, kind)
        stream.seek(0)
        return stream.read(content_bytes)


def is_sealed(path: Path, kind: DerivedKind) -> bool:
    """Whether a file is one of this kind with its checksum."""
    try:
        verify(path, kind)
    except UnreadableError:
        return False
    return True


def read_named(path: Path, kind: DerivedKind) -> bytes:
    """The content of a file that the user named; one without a checksum is taken as it is.

    Raises what `verify` does.
    """
    try:
        return read(path, kind)
    except UnreadableError as error:
        if error.has_seal:
            raise
    with _open(path, kind) as stream:
        return stream.read()


def is_whole(path: Path, kind: DerivedKind) -> bool:
    """Whether there is such a file and it is whole; a damaged one is dropped."""
    try:
        verify(path, kind)
    except FileNotFoundError:
        return False
    except UnreadableError as error:
        drop(path, kind, error.reason)
        return False
    return True


def load(path: Path, kind: DerivedKind, parse: Callable[[bytes], T]) -> T | None:
    """What `parse` makes of the content; None if there is no file.

    Also None if the file is damaged or `parse` does not know it (CONTENT_ERRORS): it is dropped.
    """
    try:
        content = read(path, kind)
    except FileNotFoundError:
        return None
    except UnreadableError as error:
        drop(path, kind, error.reason)
        return None
    try:
        return parse(content)
    except CONTENT_ERRORS as error:
        drop(path, kind, f"its content is not what this release expects ({_short(error)})")
        return None


def drop(path: Path, kind: DerivedKind, reason: str) -> None:
    """Remove a file that cannot be used, or move it aside, and say so in one line."""
    done = "dropped"
    try:
        if kind.kept_aside:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            done = f"moved to {aside}"
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        done = f"not used, and cannot be removed ({error.strerror})"
    log.warning("the %s %s is %s: %s; %s", kind.name, path, done, reason, kind.remedy)


def save_json(path: Path, kind: DerivedKind, value: Any) -> None:
    """Write a value as JSON. Raises OSError."""
    with writing(path, kind) as stream:
        stream.write(json.dumps(value, indent=1).encode())


def load_json(path: Path, kind: DerivedKind, parse: Callable[[Any], T]) -> T | None:
    """`load` of what save_json wrote. parse: makes it of the parsed JSON."""
    return load(path, kind, lambda content: parse(json.loads(content)))


def _open(path: Path, kind: DerivedKind) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:  # a folder too
        raise UnreadableError(kind.name, path, f"it cannot be read ({error.strerror})") from None


def _check(stream: IO[bytes], path: Path, kind: DerivedKind) -> int:
    """Bytes of the content, once it was found whole. Raises UnreadableError."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _TAIL_BYTES))
    found = _SEAL.search(stream.read())
    content_bytes = size - len(found.group()) if found else size
    reason = ""
    if found is None:
        reason = _NO_SEAL if size else "it is empty"
    elif (name := found[1].decode(errors="replace")) != kind.name:
        reason = f"it is of another kind ({name})"
    elif int(found[2]) != kind.version:
        reason = f"it is of version {int(found[2])}, this release reads {kind.version}"
    elif found.group() != kind.seal(_digest(stream, content_bytes)):
        reason = "its checksum does not match its content: the disk, or a program, changed it"
    if reason:
        raise UnreadableError(kind.name, path, reason, has_seal=found is not None)
    return content_bytes


def _append_seal(stream: IO[bytes], kind: DerivedKind) -> None:
    stream.flush()
    stream.seek(0)
    digest = _digest(stream, stream.seek(0, os.SEEK_END))
    stream.seek(0, os.SEEK_END)
    stream.write(kind.seal(digest))


def _digest(stream: IO[bytes], size_bytes: int) -> str:
    found = hashlib.sha256()
    stream.seek(0)
    while size_bytes > 0 and (piece := stream.read(min(size_bytes, 1 << 20))):
        found.update(piece)
        size_bytes -= len(piece)
    return found.hexdigest()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:120]
