"""Children find the packages of their parent, and an installation hides nothing of the library."""

from pathlib import Path

import pytest

from tuner.processes import start
from tuner.processes.start import end_process, python_path, start_module

SOURCE = Path(start.__file__).resolve().parents[2]


def test_a_source_tree_comes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert python_path() == f"{SOURCE}:elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    assert python_path() == str(SOURCE)


def test_an_installation_adds_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed = tmp_path / "site-packages" / "tuner" / "processes" / "start.py"
    monkeypatch.setattr(start, "__file__", str(installed))
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert python_path() == "elsewhere"


def test_a_child_ends_when_it_is_told_to():
    child = start_module("http.server", "--bind", "127.0.0.1", "0")
    assert child.poll() is None
    end_process(child)
    assert child.returncode is not None
