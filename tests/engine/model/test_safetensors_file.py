"""Headers of safetensors files that no writer writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import CheckpointError
from engine.model.safetensors_file import parse_header, read_header

Header = dict[str, Any]


def read(tmp_path: Path, header: Header | bytes) -> int:
    """The number of tensors of a file with two tensors of two bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    return len(parse_header(file, read_header(file)))


def two(**changes: Any) -> Header:
    """Two tensors, the second with changes."""
    first = {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}
    return {"a": first, "b": {**first, "data_offsets": [2, 4], **changes}}


def test_two_tensors_beside_each_other_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, two()) == 2
    assert read(tmp_path, {**two(), "none": {**two()["a"], "shape": [0], "data_offsets": [4, 4]}})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [-1]}, "b: shape holds -1, no whole number"),
        ({"shape": [-1, -1]}, "b: shape holds -1, no whole number"),
        ({"shape": [1.0]}, r"b: shape holds 1\.0, no whole number"),
        ({"shape": [True]}, "b: shape holds True, no whole number"),
        ({"shape": [2**63]}, "b: shape holds 9223372036854775808"),
        ({"shape": [1] * 17}, "b: shape must be a list of at most 16"),
        ({"shape": "1"}, "b: shape must be a list"),
        ({"shape": None}, "b: shape must be a list"),
        ({"data_offsets": [2.0, 4.0]}, r"b: data_offsets holds 2\.0"),
        ({"data_offsets": [-2, 0]}, "b: data_offsets holds -2"),
        ({"data_offsets": [2]}, r"b: data_offsets \[2\] do not hold"),
        ({"data_offsets": [math.inf, 4]}, "b: data_offsets holds inf"),
        ({"data_offsets": [0, 2]}, "begins at byte .*, not at"),  # over the first
        ({"data_offsets": [1, 3]}, "begins at byte .*, not at"),  # over half of it
        ({"shape": [2]}, r"b: data_offsets \[2, 4\] do not hold shape \(2,\)"),
        ({"dtype": ["BF16"]}, "b: it needs dtype"),
    ],
)
def test_a_tensor_that_no_file_has_is_named(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"corrupt safetensors header \(.*{says}"):
        read(tmp_path, two(**changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: b"[]",
        lambda text: b'{"a": 1}',
        lambda text: text[:-1] + b', "deep": ' + b"[" * 900 + b"]" * 900 + b"}",
        lambda text: text[:-1] + b"," + text[1:],  # each name twice
    ],
    ids=["a list", "no tensor", "deep", "twice"],
)
def test_what_is_no_header_is_refused(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    with pytest.raises(CheckpointError, match="corrupt safetensors header"):
        read(tmp_path, spoil(json.dumps(two()).encode()))
