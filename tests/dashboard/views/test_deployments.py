"""The deployments page."""

from tests.dashboard.conftest import Opened
from tuner.store.database import open_database
from tuner.store.repository import Store


def test_a_deployment_whose_texts_changed_says_re_tune(opened: Opened, own_storage: str):
    store = Store(open_database(own_storage))
    for name, routing, retune in (
        ("small/0", 0.01, False),
        ("small/0", 0.30, True),
        ("small/1", 0.02, False),
    ):
        drift = {"routing": routing, "retune": retune}
        store.add_telemetry(name, {"output_tokens": 5, "drift": drift})
    store.database.close()
    table = opened("deployments", own_storage).dataframe[0].value
    shown = table.set_index("deployment")["state"].to_dict()
    assert shown == {"small/0": "re-tune", "small/1": "holds"}


def test_without_telemetry_it_says_where_it_comes_from(opened: Opened):
    assert "tune deploy" in opened("deployments").info[0].value
