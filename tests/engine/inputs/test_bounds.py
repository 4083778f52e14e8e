"""Files and JSON within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.inputs.bounds import MOST_DEPTH, parse_json, read_bounded


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * (1 << 20))
    assert read_bounded(file, 1 << 20) == b"x" * (1 << 20)
    with file.open("ab") as more:
        more.write(b"x")
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_bounded(file, 1 << 20)


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("depth", [MOST_DEPTH + 1, 900, 200_000])
def test_json_beyond_the_depth_is_refused(opening: str, depth: int) -> None:
    closing = "]" if opening == "[" else "}"
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        parse_json(opening * depth + "1" + closing * depth)
    assert parse_json(opening * MOST_DEPTH + "1" + closing * MOST_DEPTH)


def test_a_key_that_stands_twice_is_named() -> None:
    with pytest.raises(ValueError, match="the key 'a' stands twice"):
        parse_json('{"b": [{"a": 1, "c": 2, "a": 1}]}')
