"""The maker writes a fixture of every kind, and nothing over one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.upgrade import folders
from tests.upgrade.make import make_missing


@pytest.mark.slow
def test_what_is_missing_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {path.name for path in folders.FIXTURES.iterdir()} - {"checkpoint"}
    monkeypatch.setattr(folders, "FIXTURES", tmp_path)
    made = make_missing()
    assert {path.parent.name for path in made} == there
    assert all(any(path.rglob("*")) for path in made)
    assert make_missing() == []
