"""One finished study in a store, made once for all dashboard tests; the program on it, headless."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.fakes.study import make_study
from tuner.front import Front, front_of
from tuner.store.database import open_read_only
from tuner.store.repository import Store

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
Opened = Callable[..., AppTest]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database file of a store with one study, `small`, of which one trial failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    make_study(folder, '{"faults": [{"kind": "crash", "op": "measure", "at": 4}]}')
    return folder / "data" / "expertune" / "expertune.db"


@pytest.fixture(scope="session")
def storage(made: Path) -> str:
    """Its URL; read it, do not write."""
    return f"sqlite:///{made}"


@pytest.fixture
def own_storage(made: Path, tmp_path: Path) -> str:
    """The URL of a copy that a test may write to."""
    shutil.copy(made, tmp_path / "own.db")
    return f"sqlite:///{tmp_path / 'own.db'}"


@pytest.fixture
def front(storage: str) -> Front:
    """The front of `small`."""
    store = Store(open_read_only(storage))
    study = store.study("small")
    return front_of(study, store.trials(study))


@pytest.fixture
def opened(storage: str, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Open a page by name, of another store where one is named."""

    def open_page(page: str, url: str = storage) -> AppTest:
        monkeypatch.setattr("sys.argv", ["app.py", "--storage", url])
        app = AppTest.from_file(str(APP), default_timeout=60).run()
        app.switch_page(f"views/{page}.py").run()
        assert not app.exception
        return app

    return open_page
