"""The Streamlit program, run headless by Streamlit's own test harness."""

from pathlib import Path

import pytest
import yaml
from streamlit.testing.v1 import AppTest

from tuner.store.database import open_database
from tuner.store.repository import Store

APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"


@pytest.fixture
def app(storage: str, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setattr("sys.argv", ["app.py", "--storage", storage])
    return AppTest.from_file(str(APP), default_timeout=60)


def opened(app: AppTest) -> AppTest:
    app.run()
    return app.selectbox(key="study").set_value("small").run()


def test_the_first_page_lists_the_studies(app: AppTest):
    app.run()
    assert not app.exception
    assert app.title[0].value == "Studies"
    assert app.dataframe[0].value["study"].tolist() == ["small"]


def test_a_study_shows_front_trial_and_trials(app: AppTest):
    opened(app)
    assert not app.exception
    assert app.title[0].value == "small"
    assert "(recommended)" in app.subheader[1].value
    assert [metric.label for metric in app.metric] == ["output_tps", "tpot_ms", "quality"]
    assert len(app.dataframe[-1].value) == 5


def test_choosing_a_trial_shows_its_config(app: AppTest):
    opened(app)
    app.selectbox(key="trial").set_value(0).run()
    assert not app.exception
    assert app.subheader[1].value.startswith("Trial 0")
    assert yaml.safe_load(app.code[0].value)["precision"]["bits"] == 16


def test_the_objectives_of_the_plot_can_be_chosen(app: AppTest):
    opened(app)
    app.selectbox(key="y").set_value("tpot_ms").run()
    assert not app.exception


def test_a_store_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.argv", ["app.py", "--storage", f"sqlite:///{tmp_path / 'no.db'}"])
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    assert "run a study first" in app.error[0].value


def test_a_study_says_why_and_what_else(app: AppTest):
    opened(app)
    assert not app.exception
    assert "Why, and what else" in [one.value for one in app.subheader]
    assert any("of a token's time" in one.value for one in app.markdown)


def test_a_deployment_whose_texts_changed_says_re_tune(app: AppTest, storage: str):
    store = Store(open_database(storage))
    store.add_telemetry(
        "small/0", {"output_tokens": 5, "drift": {"routing": 0.01, "retune": False}}
    )
    for name, routing, retune in (
        ("small/0", 0.01, False),
        ("small/0", 0.30, True),
        ("small/1", 0.02, False),
    ):
        drift = {"routing": routing, "retune": retune}
        store.add_telemetry(name, {"output_tokens": 5, "drift": drift})
    store.database.close()
    app.run()
    assert not app.exception
    shown = app.dataframe[1].value.set_index("deployment")["state"].to_dict()
    assert shown == {"small/0": "re-tune", "small/1": "holds"}
