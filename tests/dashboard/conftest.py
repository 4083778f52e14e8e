"""One finished study in a store, made once for all dashboard tests; the program on it, headless."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from streamlit.testing.v1 import AppTest

from tests.fakes.postgres import serving
from tests.fakes.study import make_study
from tests.requirements import require_program
from tuner.pareto.front import Front
from tuner.pareto.probability import front_of
from tuner.store.database import open_database, open_read_only
from tuner.store.repository import Store
from tuner.store.tables import Base

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
Opened = Callable[..., AppTest]
# WebGL without a GPU, which charts of three axes and parallel coordinates need
FLAGS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking"]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database file of a store with one study, `small`, some of whose trials failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    make_study(folder, '{"faults": [{"kind": "crash", "op": "measure", "at": 4}]}')
    return folder / "data" / "expertune" / "expertune.db"


@pytest.fixture(scope="session")
def storage(made: Path) -> str:
    """Its URL; read it, do not write."""
    return f"sqlite:///{made}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=require_program("chromium"), args=FLAGS)
        yield opened
        opened.close()


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


@pytest.fixture(params=["sqlite", "postgresql"])
def any_storage(request: pytest.FixtureRequest, own_storage: str) -> Iterator[str]:
    """A store with the study `small`, in either database."""
    if request.param == "sqlite":
        yield own_storage
        return
    with serving() as url:
        copy_rows(own_storage, url)
        yield url


def copy_rows(source: str, target: str) -> None:
    """Of all our tables, into PostgreSQL."""
    old, new = open_read_only(source), open_database(target)
    with old.engine.connect() as reading, new.engine.begin() as writing:
        for table in Base.metadata.sorted_tables:
            rows = [dict(row) for row in reading.execute(table.select()).mappings()]
            if rows:
                writing.execute(table.insert(), rows)
                sequence = f"pg_get_serial_sequence('{table.name}', 'id')"
                last = f"(SELECT max(id) FROM {table.name})"
                writing.execute(sa.text(f"SELECT setval({sequence}, {last})"))
    old.close()
    new.close()
