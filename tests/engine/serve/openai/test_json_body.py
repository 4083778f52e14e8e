"""Bodies: what is one JSON value in UTF-8 is read, everything else is the client's error."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.serve.openai.errors import ApiError
from engine.serve.openai.json_body import parse_body

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(VALUES.filter(lambda value: "inf" not in repr(value)), st.booleans())
def test_json_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_body(text.encode()) == value
    assert parse_body(b"\xef\xbb\xbf" + text.encode()) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_a_value_or_the_clients_error(body: bytes) -> None:
    with contextlib.suppress(ApiError):
        json.dumps(parse_body(body), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "Infinity is no number"),
        (b'{"model": 1, "model": 2}', "'model' stands twice"),
        (b'{"my secret": 1, "my secret": 2}', "a key stands twice"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not valid JSON"),
    ],
)
def test_what_is_no_json_is_refused_in_words(body: bytes, says: str) -> None:
    with pytest.raises(ApiError, match=says) as raised:
        parse_body(body)
    assert raised.value.status == 400
    assert "secret" not in str(raised.value)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_body(b'"\\ud83d\\ude00 \\\\ud800"') == "\U0001f600 \\ud800"
