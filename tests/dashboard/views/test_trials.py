"""The trials page: filters, failures, charts."""

from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import APP, Opened
from tests.fakes.crowd import crowd
from tuner.pareto.front import Front


def test_all_trials_are_listed_the_newest_first(opened: Opened):
    app = opened("trials")
    assert app.dataframe[0].value["trial"].tolist() == [4, 3, 2, 1, 0]
    assert any("1 to 5 of 5 trials" in one.value for one in app.caption)


def test_a_state_and_a_failure_narrow_the_table(opened: Opened):
    app = opened("trials")
    app.multiselect(key="state-small").set_value(["FAILED"]).run()
    failed = app.dataframe[0].value
    assert set(failed["failure"]) == {"crash"}
    app.multiselect(key="state-small").set_value([])
    app.multiselect(key="failure-small").set_value(["crash"]).run()
    assert app.dataframe[0].value["trial"].tolist() == failed["trial"].tolist()


def test_a_setting_narrows_the_table(opened: Opened):
    app = opened("trials")
    everything = app.dataframe[0].value
    app.selectbox(key="setting-small").set_value("precision.bits").run()
    app.selectbox(key="value-small-precision.bits").set_value("16").run()
    assert not app.exception
    narrowed = app.dataframe[0].value
    expected = everything[everything["precision.bits"] == "16"]
    assert 0 < len(narrowed) < len(everything)
    assert narrowed["trial"].tolist() == expected["trial"].tolist()


def test_what_failed_and_what_was_predicted_is_drawn(opened: Opened):
    assert [one.value for one in opened("trials").subheader] == [
        "Failures by class",
        "Predicted against measured",
        "What was not tried",
        "Settings and what they gave",
        "How much each setting matters",
    ]


def test_what_was_not_tried_is_named(opened: Opened, front: Front):
    app = opened("trials")
    table = next(one.value for one in app.dataframe if "never measured" in one.value)
    row = table[table["setting"] == "precision.bits"].iloc[0]
    measured = {str(t.params["precision.bits"]) for t in front.trials if t.scores}
    assert set(row["measured"].split(", ")) == measured
    left = row["never measured"].split(", ")
    assert not measured & set(left)
    said = next(one.value for one in app.caption if "never measured" in one.value)
    assert all(f"{bits} bits" in said for bits in left)


def test_the_address_says_what_the_table_is_narrowed_to(opened: Opened):
    app = opened("trials")
    app.multiselect(key="state-small").set_value(["FAILED"]).run()
    assert app.query_params["state"] in ("FAILED", ["FAILED"])
    again = AppTest.from_file(str(APP), default_timeout=60)
    again.switch_page("views/trials.py")
    again.query_params["state"] = ["FAILED"]
    again.query_params["setting"] = "precision.bits"
    again.query_params["value"] = "16"
    again.run()
    assert not again.exception
    assert again.multiselect(key="state-small").value == ["FAILED"]
    assert again.selectbox(key="value-small-precision.bits").value == "16"


def test_what_mattered_is_drawn_once_enough_ran(opened: Opened, own_storage: str):
    crowd(own_storage, studies=1, trials=10)
    headings = [one.value for one in opened("trials", own_storage).subheader]
    assert "How much each setting matters" in headings


def test_a_long_list_is_paged_and_says_so(opened: Opened, own_storage: str):
    crowd(own_storage, studies=1, trials=250)
    app = opened("trials", own_storage)
    assert len(app.dataframe[0].value) == 100
    app.number_input(key="page-copy-1").set_value(3).run()
    assert not app.exception
    assert app.dataframe[0].value["trial"].tolist() == list(range(49, -1, -1))
    assert any("201 to 250 of 250 trials" in one.value for one in app.caption)
