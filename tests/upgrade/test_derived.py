"""Derived files of every version: the same value, or dropped with one sentence and made again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from engine.derived import file as file_module
from engine.derived.file import DerivedKind
from engine.run.engine import Engine
from tests.engine.derived.subjects import LINES, SUBJECTS
from tests.upgrade import folders
from tests.upgrade.folders import FILES, FIXTURES, fixture, missing, versions_now, versions_of

CASES = [(kind, version) for kind in FILES for version in versions_of(kind)]


def kinds_now(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> dict[str, DerivedKind]:
    return {
        kind: SUBJECTS[name](folder / kind, engine, monkeypatch).kind
        for kind, name in FILES.items()
    }


def test_every_version_that_is_written_has_a_fixture(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = versions_now(kinds_now(tmp_path, engine, monkeypatch))
    assert missing(now) == []
    assert {path.name for path in FIXTURES.iterdir()} == {*now, "checkpoint"}


def test_a_version_without_a_fixture_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_head", lambda: "0999")
    (said,) = missing({"store": versions_now({})["store"]})
    assert said.startswith("there is no fixture of store 0999: run `python -m tests.upgrade.make`")


@pytest.mark.parametrize(("kind", "version"), CASES)
def test_a_file_of_this_version_is_read_or_made_again(
    kind: str,
    version: str,
    tmp_path: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name, folder = FILES[kind], tmp_path / kind
    folder.mkdir()
    subject = SUBJECTS[name](folder, engine, monkeypatch)
    subject.write()
    (kept,) = fixture(kind, version).iterdir()
    before = kept.read_bytes()
    subject.path.write_bytes(before)
    caplog.clear()
    if version == str(subject.kind.version):
        if name not in LINES and name != "answers":
            file_module.verify(subject.path, subject.kind)
        assert subject.read() == subject.right
        assert name == "answers" or subject.path.read_bytes() == before
        return
    found = subject.read()
    said = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    if found != subject.right or subject.makes_again:
        assert found is None or subject.makes_again
        assert len(said) == 1
        assert subject.kind.remedy in said[0]
    subject.write()
    assert subject.read() == subject.right
