"""The frame of every page: navigation, the chosen study, errors as sentences."""

import sqlite3
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard.app import PAGES
from tests.dashboard.conftest import APP, Opened
from tests.fakes.crowd import crowd
from tuner.store.database import open_database
from tuner.store.repository import Store


@pytest.mark.parametrize("page", [name for name, _, _ in PAGES])
def test_every_page_opens(opened: Opened, page: str):
    app = opened(page)
    assert not app.error
    assert app.title[0].value


@pytest.mark.parametrize("page", [name for name, _, _ in PAGES])
def test_a_store_that_is_not_there_is_one_sentence(opened: Opened, page: str, tmp_path: Path):
    app = opened(page, f"sqlite:///{tmp_path / 'no.db'}")
    assert "run a study first" in app.error[0].value
    assert not (tmp_path / "no.db").exists()


@pytest.mark.parametrize("page", [name for name, _, _ in PAGES if name != "deployments"])
def test_a_store_without_studies_says_how_to_begin(opened: Opened, page: str, tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'e.db'}"
    open_database(url).close()
    assert "There are no studies yet" in opened(page, url).info[0].value


def test_the_chosen_study_stays_from_page_to_page(opened: Opened, own_storage: str):
    crowd(own_storage, studies=1, trials=10)
    app = opened("studies", own_storage)
    assert app.selectbox(key="study").value == "copy-1"
    app.selectbox(key="study").set_value("small").run()
    app.switch_page("views/trials.py").run()
    assert app.selectbox(key="study").value == "small"
    assert len(app.dataframe[0].value) == 5


def test_the_address_names_the_study(own_storage: str, monkeypatch: pytest.MonkeyPatch):
    crowd(own_storage, studies=1, trials=10)
    monkeypatch.setattr("sys.argv", ["app.py", "--storage", own_storage])
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.query_params["study"] = "small"
    app.run()
    assert app.selectbox(key="study").value == "small"
    app.selectbox(key="study").set_value("copy-1").run()
    assert app.query_params["study"] in ("copy-1", ["copy-1"])


def test_a_store_of_another_release_is_left_alone(opened: Opened, own_storage: str):
    path = own_storage.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE expertune_version SET version_num = '0001'")
    connection.close()
    assert "run the study again" in opened("studies", own_storage).error[0].value


def test_reading_changes_no_byte(opened: Opened, own_storage: str):
    path = Path(own_storage.removeprefix("sqlite:///"))
    before = path.read_bytes()
    for page, _, _ in PAGES:
        opened(page, own_storage)
    assert path.read_bytes() == before
    assert Store(open_database(own_storage)).study_names() == ("small",)
