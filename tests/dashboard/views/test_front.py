"""The front page: choosing, moving limits, exporting."""

import yaml

from tests.dashboard.conftest import Opened
from tuner.deployment.defaults import complete_settings
from tuner.deployment.formats.registry import FORMATS
from tuner.pareto.front import Front


def test_the_recommended_trial_is_shown_first(opened: Opened, front: Front):
    app = opened("front")
    assert app.selectbox(key="trial-small").value == front.knee.number
    assert app.subheader[0].value == f"Trial {front.knee.number} (recommended)"
    assert [metric.label for metric in app.metric] == ["output_tps", "tpot_ms", "quality"]


def test_the_table_holds_the_front_and_how_sure_it_is(opened: Opened, front: Front):
    table = opened("front").dataframe[0].value
    assert table["trial"].tolist() == [member.number for member in front.members]
    assert table["on the front with"].str.endswith("%").all()


def test_choosing_a_trial_shows_its_config(opened: Opened):
    app = opened("front")
    app.selectbox(key="trial-small").set_value(0).run()
    assert not app.exception
    assert app.subheader[0].value.startswith("Trial 0")
    shown = yaml.safe_load(app.code[0].value)
    assert shown["cache"]["expert_bytes"] > 0
    assert "transfer" not in shown  # as by default
    assert complete_settings(shown)["precision"]["bits"] == 16


def test_two_and_three_objectives_can_be_drawn(opened: Opened):
    app = opened("front")
    app.selectbox(key="y").set_value("tpot_ms").run()
    assert not app.exception
    app.segmented_control(key="view").set_value("three objectives").run()
    assert not app.exception
    assert len(app.get("plotly_chart")) == 2


def test_a_study_says_why_and_what_else(opened: Opened):
    app = opened("front")
    assert "Why, and what else" in [one.value for one in app.subheader]
    assert any("of a token's time" in one.value for one in app.markdown)


def test_moving_a_limit_moves_the_front_and_the_recommended_one(opened: Opened, front: Front):
    app = opened("front")
    assert any("the study's own" in one.value for one in app.caption)
    highest = max(member.scores["quality"] for member in front.members)
    app.slider(key="limit-small-min_quality").set_value(highest).run()
    assert not app.exception
    assert any("differ from the study's own" in one.value for one in app.caption)
    table = app.dataframe[0].value
    best = [m.number for m in front.members if m.scores["quality"] >= highest]
    assert set(table["trial"]) == set(best)
    assert app.subheader[0].value.startswith("Trial")


def test_limits_that_nothing_keeps_are_said(opened: Opened):
    app = opened("front")
    slider = app.slider(key="limit-small-max_tpot_ms")
    slider.set_value(slider.min)
    tightest = app.slider(key="limit-small-min_quality")
    tightest.set_value(tightest.max).run()
    assert not app.exception
    assert "loosen one" in app.warning[0].value


def test_every_format_can_be_exported(opened: Opened):
    app = opened("front")
    for name in FORMATS:
        app.selectbox(key="format").set_value(name).run()
        assert not app.exception
        assert len(app.get("download_button")) == 1 or app.warning
