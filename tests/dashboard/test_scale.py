"""A store of 100,000 trials opens at once: `pytest -m slow tests/dashboard/test_scale.py -s`."""

import shutil
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import Opened
from tests.fakes.crowd import crowd

STUDIES, TRIALS = 50, 2000
LIMIT_S = 2.0
PAGES = ("studies", "front", "trials", "experts", "compare", "machine")


@pytest.fixture(scope="module")
def many_studies(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """49 studies of 2000 trials beside the small one."""
    return crowded(made, tmp_path_factory.mktemp("many"), STUDIES - 1, TRIALS)


@pytest.fixture(scope="module")
def one_large_study(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One study of 100,000 trials beside the small one."""
    return crowded(made, tmp_path_factory.mktemp("large"), 1, STUDIES * TRIALS)


def crowded(made: Path, folder: Path, studies: int, trials: int) -> str:
    shutil.copy(made, folder / "e.db")
    url = f"sqlite:///{folder / 'e.db'}"
    crowd(url, studies, trials)
    return url


def seconds_of(app: AppTest, page: str) -> float:
    """What one look at a page takes, the program and its libraries being loaded."""
    started = time.monotonic()
    app.switch_page(f"views/{page}.py").run()
    taken = time.monotonic() - started
    assert not app.exception
    assert not app.error
    print(f"{page}: {taken:.2f} s")
    return taken


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
@pytest.mark.parametrize("store", ["many_studies", "one_large_study"])
def test_every_page_of_a_hundred_thousand_trials_opens_at_once(
    opened: Opened, storage: str, store: str, request: pytest.FixtureRequest
):
    for page in PAGES:
        opened(page, storage)  # loads what any first look loads
    app = opened("machine", request.getfixturevalue(store))
    assert all(seconds_of(app, page) < LIMIT_S for page in PAGES)
