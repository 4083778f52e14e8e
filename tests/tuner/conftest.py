"""The command in this process, its data in a temporary folder, the fake engine behind it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import in_process
from tests.fakes.study import ENGINE, make_study, write_definition
from tuner.__main__ import run
from tuner.cli import options
from tuner.engine_client.session import worker_factory
from tuner.search import space


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Tune = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with study.yaml and workload.yaml."""
    monkeypatch.setenv("EXPERTUNE_ENGINE", ENGINE)
    monkeypatch.setattr(options, "worker_factory", in_process.worker_factory)
    monkeypatch.setattr(space, "multiplies_bytes", lambda: False)  # on any processor
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EXPERTUNE_FAKE", raising=False)
    monkeypatch.chdir(tmp_path)
    write_definition(tmp_path)
    return tmp_path


@pytest.fixture
def processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are processes, as they are outside of tests."""
    monkeypatch.setattr(options, "worker_factory", worker_factory)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, made once; copy it, do not change it."""
    made = tmp_path_factory.mktemp("finished")
    make_study(made)
    return made


@pytest.fixture
def study(folder: Path, finished: Path) -> Path:
    """The working folder, with a finished study in it."""
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def tune(folder: Path, capsys: pytest.CaptureFixture[str]) -> Tune:
    """Run `tune` with these words."""

    def invoke(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return invoke


@pytest.fixture
def misbehave(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Notify the fake engine what to do wrong: faults as (kind, op, at)."""

    def arrange(*faults: tuple[str, str, int | None], **knobs: object) -> None:
        listed = [{"kind": kind, "op": op, "at": at} for kind, op, at in faults]
        text = json.dumps({"faults": listed, "counter": str(folder / "counts.json"), **knobs})
        monkeypatch.setenv("EXPERTUNE_FAKE", text)

    return arrange
