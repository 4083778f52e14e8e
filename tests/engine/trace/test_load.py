"""What is not a trace is refused in one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.errors import StorageError, UsageError
from engine.trace.trace import load_trace


def _old(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, header=np.array(json.dumps({"version": 0})))


def _headless(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, routes=np.zeros(3))


def _single(path: Path) -> None:
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Path.mkdir, "Is a directory"),
        (Path.touch, "is not a routing trace"),
        (lambda path: path.write_text("prompts"), "is not a routing trace"),
        (lambda path: path.write_bytes(b"PK\x03\x04 cut"), "is not a routing trace"),
        (_single, "is not a routing trace"),
        (_headless, "is not a routing trace"),
        (_old, "it is of version 0"),
    ],
)
def test_what_is_no_trace_is_refused(
    make: Callable[[Path], object], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.npz"
    make(path)
    with pytest.raises(StorageError, match=f"{sentence}.*`tune trace`"):
        load_trace(path)


def test_a_missing_trace_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no trace .*none\.npz.*`tune trace`") as raised:
        load_trace(tmp_path / "none.npz")
    assert raised.value.exit_code == 2
