"""The trials page: filters, failures, charts."""

from tests.dashboard.conftest import Opened
from tests.fakes.crowd import crowd


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
        "Settings and what they gave",
        "Predicted against measured",
    ]


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
