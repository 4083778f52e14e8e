"""Every kind of derived file under every damage: the right value or a redo, never another value."""

from __future__ import annotations

import ast
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config.settings import EngineConfig
from engine.derived import file as file_module
from engine.derived import lines as lines_module
from engine.derived.file import save_json
from engine.errors import ConfigError, StorageError
from engine.facts.timings import read_timings
from engine.policy.learned import load_learned
from engine.run.engine import Engine
from engine.trace.trace import load_trace
from tests.engine.derived.damage import DAMAGES, without_seal
from tests.engine.derived.subjects import LINES, SUBJECTS, Subject, rewrite_header
from tests.engine.memory.test_plan import make_facts
from tests.engine.policy.made import make_trace

# A last line that a kill cut short is no damage; an SQLite file without bytes is an empty database.
SILENT = {
    ("evaluation journal", "half"),
    ("evaluation journal", "a byte short"),
    ("evaluation journal", "bit 0 at 1.0"),
    ("evaluation journal", "bit 5 at 1.0"),
    ("answers", "empty"),
}
WITH_LIST = {"manifest", "pack journal"}
CASES = [
    (name, way)
    for name in SUBJECTS
    for way in DAMAGES
    if (way != "list cut short" or name in WITH_LIST)
    and (name != "described file" or way not in ("earlier release", "other version"))
]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "subject").mkdir()
    return tmp_path / "subject"


def damage(subject: Subject, name: str, way: str) -> bool:
    """Damage the file; whether that changed anything."""
    before = subject.path.read_bytes()
    if way == "other version" and name in LINES:
        rewrite_header(subject.path, subject.kind)
    elif way == "earlier release" and name in LINES:
        lines = (line.partition(b" ")[2] for line in before.splitlines(keepends=True)[1:])
        subject.path.write_bytes(b"".join(lines))
    elif way in ("other version", "earlier release") and name == "answers":
        with sqlite3.connect(subject.path) as file:
            file.execute(f"PRAGMA user_version={98765 if way == 'other version' else 0}")
        file.close()
    else:
        subject.path.write_bytes(DAMAGES[way](before))
    return subject.path.read_bytes() != before


def is_right_or_absent(found: Any, right: Any) -> bool:
    """Whether a value, or each of several, is the right one or missing."""
    if isinstance(right, list) and isinstance(found, list) and len(found) == len(right):
        return all(one is None or one == other for one, other in zip(found, right, strict=True))
    return found is None or found == right


def survive(subject: Subject, name: str, way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Write, damage, read, make again."""
    subject.write()
    assert damage(subject, name, way), "it must change something"
    caplog.clear()
    found = subject.read()
    said = [line.getMessage() for line in caplog.records if line.levelno == logging.WARNING]
    assert is_right_or_absent(found, subject.right), f"{found!r} was used"
    if subject.makes_again:
        assert found == subject.right
    elif found != subject.right and (name, way) not in SILENT:
        assert len(said) >= 1, "it must be said"
        assert any(word in said[0] for word in (str(subject.path.parent), subject.path.name))
    assert len(said) <= (8 if name == "answers" else 1), "one line is enough"
    subject.write()
    assert subject.read() == subject.right


@pytest.mark.parametrize(("name", "way"), CASES)
def test_no_damage_is_taken_for_a_value(
    name: str,
    way: str,
    folder: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    survive(SUBJECTS[name](folder, engine, monkeypatch), name, way, caplog)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("machine profile", (b"8000000000.0", b"8000000001.0")),
        ("reference", (b"\xbf", b"\x3f")),
        ("evaluation journal", (b"1.25", b"1.75")),
    ],
)
def test_a_fault_planted_in_the_checker_is_found(
    name: str,
    changed: tuple[bytes, bytes],
    folder: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_module, "_digest", lambda *_: "0" * 64)
    monkeypatch.setattr(lines_module, "short_digest", lambda _: "0" * 16)
    subject = SUBJECTS[name](folder, engine, monkeypatch)
    subject.write()
    subject.path.write_bytes(subject.path.read_bytes().replace(*changed))
    assert not is_right_or_absent(subject.read(), subject.right)


def test_every_kind_is_tested(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    defined = set()
    for package in ("engine", "tuner", "dashboard"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DerivedKind":
                    assert isinstance(node.args[0], ast.Constant)
                    defined.add(node.args[0].value)
    tested = {
        build(folder / str(number), engine, monkeypatch).kind.name
        for number, build in enumerate(SUBJECTS.values())
    }
    assert defined == tested


def test_arrays_are_read_and_written_in_one_place() -> None:
    """Besides the reference, which is mapped into memory after it was verified."""
    found = set()
    for package in ("engine", "tuner", "dashboard"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if any(word in text for word in ("np.load(", "np.save", "np.savez")):
                found.add(str(path.relative_to(ROOT)))
    assert found == {"engine/derived/arrays.py", "engine/evaluate/divergence.py"}


@pytest.mark.parametrize(
    ("name", "way"), [case for case in CASES if case[0] in ("trace", "timings", "learned")]
)
def test_a_file_that_the_user_named_is_refused_and_stays(
    name: str, way: str, folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = SUBJECTS[name](folder, engine, monkeypatch)
    subject.write()
    damage(subject, name, way)
    before = subject.path.read_bytes()
    named = EngineConfig().overlay({"prefetch.options.weights": str(subject.path)})
    read: Any = {
        "trace": lambda: load_trace(subject.path).experts.tolist(),
        "timings": lambda: read_timings(subject.path),
        "learned": lambda: {
            key: array.tolist() for key, array in load_learned(named, make_facts(), folder).items()
        },
    }[name]
    right = subject.right[1] if name == "trace" else subject.right
    try:
        found = read()
    except (StorageError, ConfigError) as error:
        assert str(subject.path) in str(error)  # noqa: PT017
        assert "tune " in str(error)  # noqa: PT017
    else:
        assert found == right
    assert subject.path.read_bytes() == before


def test_a_manifest_with_too_few_checksums_is_not_served(
    folder: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subject = SUBJECTS["manifest"](folder, engine, monkeypatch)
    subject.write()
    kept = json.loads(file_module.read(subject.path, subject.kind))
    save_json(subject.path, subject.kind, {**kept, "checksums": kept["checksums"][:-1]})
    assert subject.read() == subject.right
    assert "23 checksums of 24 records" in caplog.text


def test_predictors_of_an_earlier_release_are_read_once_and_get_a_checksum(
    folder: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = SUBJECTS["learned"](folder, engine, monkeypatch)
    subject.write()
    subject.path.write_bytes(without_seal(subject.path.read_bytes()))
    assert subject.read() == subject.right
    file_module.verify(subject.path, subject.kind)


def test_damaged_predictors_are_moved_aside_not_removed(
    folder: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subject = SUBJECTS["learned"](folder, engine, monkeypatch)
    subject.write()
    half = DAMAGES["half"](subject.path.read_bytes())
    subject.path.write_bytes(half)
    assert subject.read() is None
    assert subject.path.with_name(f"{subject.path.name}.damaged").read_bytes() == half
    assert "tune train" in caplog.text


def test_a_trace_still_opens_with_numpy_alone(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    make_trace(np.zeros((4, 2, 2))).save(path)
    with np.load(path) as file:
        assert file["experts"].shape == (4, 2, 2)
