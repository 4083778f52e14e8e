"""Reads files and JSON that others wrote, within bounds of size and nesting.

Raises ValueError with what is wrong; the caller names the file and what to try.
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

MOST_DEPTH = 64  # configs, tokenizers and studies nest below 10
MOST_JSON_BYTES = 64 << 20  # the largest index and tokenizer files are near 30 MB


def read_bounded(path: Path, most_bytes: int, *, regular: bool = False) -> bytes:
    """The bytes of a file. Raises ValueError if it is larger, OSError if it cannot be read.

    regular: refuse, with ValueError, what a link may lead to and what never ends or begins: pipes,
    devices, sockets. A user may name those; a folder of someone else's may not.
    """
    opener = _open_without_waiting if regular else None
    with open(path, "rb", opener=opener) as stream:
        if regular and not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("it is no regular file")
        data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes >> 20} MiB")
    return data


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, has a key twice in one object, or
    is nested beyond MOST_DEPTH."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise _too_deep() from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise ValueError if lists and mappings are nested beyond MOST_DEPTH."""
    inside = [value]
    for _ in range(MOST_DEPTH):
        inside = [
            child
            for one in inside
            if isinstance(one, dict | list)
            for child in (one.values() if isinstance(one, dict) else one)
        ]
        if not inside:
            return
    if any(isinstance(one, dict | list) for one in inside):
        raise _too_deep()


def _open_without_waiting(path: str, flags: int) -> int:
    """Of a pipe, whose other end nobody may ever open."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the key '{counts.most_common(1)[0][0]:.80}' stands twice")
    return made


def _too_deep() -> ValueError:
    return ValueError(f"it is nested more than {MOST_DEPTH} deep")
