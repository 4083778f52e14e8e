"""Derived files that grow line by line, each line of JSON with a checksum before it.

The first line holds the kind and the version. A last line that a kill cut short is dropped; a
damaged one ends the file.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.derived.file import DerivedKind, drop
from engine.files import replacing, short_digest, sync_folder

log = logging.getLogger(__name__)


class LineFile:
    """Values in the order in which they were appended. Its methods raise OSError."""

    def __init__(self, path: Path, kind: DerivedKind) -> None:
        self.path = path
        self._kind = kind
        self._header = {"expertune": kind.name, "version": kind.version}

    def read(self) -> list[Any]:
        """All values up to the first damaged line, which is cut off with what follows it."""
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        lines = list(io.BytesIO(data))
        values: list[Any] = []
        whole_bytes = 0
        for line in lines:
            value, whole = _parse(line)
            if not whole:
                break
            values.append(value)
            whole_bytes += len(line)
        if not values or values[0] != self._header:
            drop(self.path, self._kind, "it is empty or damaged, or an earlier release wrote it")
            return []
        lost = len(lines) - len(values)
        if lost:
            self._cut(whole_bytes)
        if lost > 1 or (lost and data.endswith(b"\n")):  # else only a kill
            log.warning(
                "the %s %s is damaged from line %d on: what follows is dropped; %s",
                self._kind.name,
                self.path,
                len(values) + 1,
                self._kind.remedy,
            )
        return [value for value in values if value != self._header]  # two may have begun the file

    def append(self, value: Any) -> None:
        """Add a value; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as stream:
            new = stream.tell() == 0
            stream.write((_line(self._header) if new else b"") + _line(value))
            stream.flush()
            os.fsync(stream.fileno())
        if new:
            sync_folder(self.path.parent)

    def rewrite(self, values: Iterable[Any]) -> None:
        """Replace all values."""
        with replacing(self.path) as stream:
            stream.writelines(_line(value) for value in (self._header, *values))

    def _cut(self, size_bytes: int) -> None:
        with self.path.open("r+b") as stream:
            stream.truncate(size_bytes)
            os.fsync(stream.fileno())


def _line(value: Any) -> bytes:
    text = json.dumps(value)
    return f"{short_digest(text)} {text}\n".encode()


def _parse(line: bytes) -> tuple[Any, bool]:
    """The value, and whether the line is whole."""
    digest, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or short_digest(text).encode() != digest:
        return None, False
    try:
        return json.loads(text), True
    except (ValueError, RecursionError):
        return None, False
