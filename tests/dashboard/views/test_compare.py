"""The compare page."""

from tests.dashboard.conftest import Opened
from tests.fakes.crowd import crowd
from tuner.pareto.front import Front


def test_two_members_of_a_front_are_compared_at_first(opened: Opened, front: Front):
    app = opened("compare")
    first = app.selectbox(key="first-trial-small").value
    second = app.selectbox(key="second-trial-small").value
    assert first == front.knee.number
    assert second != first
    table = app.dataframe[-1].value.set_index("metric")
    assert table.loc["output_tps", "verdict"] in ("differs", "not told apart")
    assert table.loc["output_tps", "low"] <= table.loc["output_tps", "second / first"]


def test_a_config_does_not_differ_from_itself(opened: Opened):
    app = opened("compare")
    same = app.selectbox(key="first-trial-small").value
    app.selectbox(key="second-trial-small").set_value(same).run()
    assert not app.exception
    assert "Every setting is the same." in [one.value for one in app.info]
    assert "differs" not in app.dataframe[-1].value["verdict"].tolist()


def test_configs_of_two_studies_can_be_compared(opened: Opened, own_storage: str):
    crowd(own_storage, studies=1, trials=10)
    app = opened("compare", own_storage)
    app.selectbox(key="second-study").set_value("small").run()
    assert not app.exception
    assert "output_tps" in app.dataframe[-1].value["metric"].tolist()
