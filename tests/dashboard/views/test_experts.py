"""The experts page."""

import sqlite3

from tests.dashboard.conftest import Opened
from tests.fakes.fake_engine import LAYERS


def test_layers_show_hits_and_predictions(opened: Opened):
    app = opened("experts")
    layers = app.dataframe[1].value
    assert layers["layer"].tolist() == list(range(LAYERS))
    assert layers["hit rate"].is_monotonic_decreasing
    assert (layers["look-ups"] > 0).all()
    assert len(app.get("plotly_chart")) == 2


def test_what_was_measured_before_counts_were_kept_says_so(opened: Opened, own_storage: str):
    with sqlite3.connect(own_storage.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM expert_use")
    connection.close()
    assert "measure it again" in opened("experts", own_storage).info[0].value
