"""Names of this machine."""

from __future__ import annotations

import pytest

from engine.inputs.host_name import names_this_machine


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        *[(name, True) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:80", "127.9.9.9")],
        *[(name, True) for name in ("[::1]", "[::1]:8000")],
        *[(name, False) for name in ("", "evil.example", "evil.example:8000", "127.0.0.1.evil.io")],
        *[(name, False) for name in ("localhost.evil.io", "evil.io:localhost", "192.168.0.7")],
    ],
)
def test_only_loopback_names_name_this_machine(header: str, expected: bool) -> None:
    assert names_this_machine(header) is expected
