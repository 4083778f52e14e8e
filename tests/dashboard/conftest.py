"""One finished study in a store, made once for all dashboard tests."""

import pytest

from tests.fakes.study import make_study


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store with one study, `small`, of which one trial failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    make_study(folder, '{"faults": [{"kind": "crash", "op": "measure", "at": 4}]}')
    return f"sqlite:///{folder / 'data' / 'expertune' / 'expertune.db'}"
