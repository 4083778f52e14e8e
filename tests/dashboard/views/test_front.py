"""The front page: choosing, moving limits, exporting."""

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from dashboard.views.front import THREE
from tests.dashboard.conftest import APP, Opened
from tuner.deployment.defaults import complete_settings
from tuner.deployment.formats.registry import FORMATS
from tuner.pareto.front import Front


def test_the_recommended_trial_is_shown_first(opened: Opened, front: Front):
    app = opened("front")
    assert app.selectbox(key="trial-small").value == front.knee.number
    assert app.subheader[0].value == f"Trial {front.knee.number} (recommended)"
    said = app.columns[1].markdown[0].value
    assert all(word in said for word in ("tokens/s** throughput", "time per token", "quality"))


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
    view = app.selectbox(key="view")
    assert view.value == "output_tps,tpot_ms"
    assert view.options[0] == "throughput and time per token, quality as colour"
    for wanted in ("tpot_ms,quality", THREE):
        app.selectbox(key="view").set_value(wanted).run()
        assert not app.exception
        assert len(app.get("plotly_chart")) == 2


def test_the_address_says_trial_limits_and_view_and_a_link_shows_them_again(
    opened: Opened, front: Front, storage: str
):
    app = opened("front")
    assert set(app.query_params) == {"study"}
    highest = max(member.scores["quality"] for member in front.members)
    app.selectbox(key="view").set_value("output_tps,quality").run()
    app.slider(key="limit-small-min_quality").set_value(highest).run()
    kept = app.dataframe[0].value["trial"].tolist()
    chosen = next(n for n in app.selectbox(key="trial-small").options if "recommended" not in n)
    app.selectbox(key="trial-small").set_value(int(chosen.split()[1])).run()
    link = {name: app.query_params[name] for name in app.query_params}
    assert {"study", "view", "min_quality"} <= set(link)

    again = AppTest.from_file(str(APP), default_timeout=60)
    again.switch_page("views/front.py")
    for name, values in link.items():
        again.query_params[name] = values
    again.run()
    assert not again.exception
    assert again.selectbox(key="view").value == "output_tps,quality"
    assert again.slider(key="limit-small-min_quality").value == pytest.approx(highest)
    assert again.dataframe[0].value["trial"].tolist() == kept
    assert again.selectbox(key="trial-small").value == app.selectbox(key="trial-small").value


@pytest.mark.parametrize("trial", ["99", "x", "-1"])
def test_an_address_that_names_nothing_shows_the_recommended(
    opened: Opened, front: Front, trial: str
):
    opened("front")  # names the store
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.switch_page("views/front.py")
    for name, text in {"trial": trial, "view": "nothing", "max_tpot_ms": "much"}.items():
        app.query_params[name] = text
    app.run()
    assert not app.exception
    assert app.selectbox(key="trial-small").value == front.knee.number
    assert app.selectbox(key="view").value == "output_tps,tpot_ms"


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
