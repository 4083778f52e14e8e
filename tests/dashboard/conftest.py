"""One finished study in a store, made once for all dashboard tests."""

import os
from pathlib import Path

import pytest

from tests.fakes.study import ENGINE, write_definition
from tuner.__main__ import run


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store with one study, `small`, of which one trial failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    before = dict(os.environ)
    os.environ["EXPERTUNE_ENGINE"] = ENGINE
    os.environ["XDG_DATA_HOME"] = str(folder / "data")
    os.environ["EXPERTUNE_FAKE"] = '{"faults": [{"kind": "crash", "op": "measure", "at": 4}]}'
    url = f"sqlite:///{folder / 'e.db'}"
    try:
        path = write_definition(folder)
        words = ["--definition", str(path), "--storage", url, "--trials", "5"]
        assert run([*words, "--output", str(Path(folder) / "best.yaml")]) == 0
    finally:
        os.environ.clear()
        os.environ.update(before)
    return url
