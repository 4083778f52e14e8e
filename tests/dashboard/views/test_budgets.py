"""The budgets page."""

import json
import sqlite3

from tests.dashboard.conftest import Opened


def test_one_budget_says_how_to_get_a_curve(opened: Opened):
    assert "A list makes a curve" in opened("budgets").info[0].value


def test_each_budget_of_a_curve_is_a_row(opened: Opened, own_storage: str):
    path = own_storage.removeprefix("sqlite:///")
    with sqlite3.connect(path) as connection:
        [(text,)] = connection.execute("SELECT definition FROM study").fetchall()
        definition = json.loads(text)
        budget = definition["budget"]
        budget["curve"] = [budget["vram_bytes"] - 1]
        connection.execute("UPDATE study SET definition = ?", (json.dumps(definition),))
    connection.close()
    app = opened("budgets", own_storage)
    table = app.dataframe[0].value
    assert table["budget (GB)"].tolist() == [
        (budget["vram_bytes"] - 1) / 1e9,
        budget["vram_bytes"] / 1e9,
    ]
    assert table["fastest tokens/s"].isna().tolist() == [True, False]
