"""Charts of trials."""

import pandas as pd

from dashboard.charts.trials import (
    failures_figure,
    importances_figure,
    parallel_figure,
)
from dashboard.frames.trials import failures_frame, importances_frame


def test_failures_are_bars_by_class():
    figure = failures_figure(failures_frame({"task": 2, "crash": 1}))
    assert list(figure.data[0].y) == ["crash", "task"]
    assert list(figure.data[0].x) == [1, 2]


def test_settings_that_are_words_become_places_with_names():
    table = pd.DataFrame({"cache.eviction": ["lru", "arc"], "output_tps": [1.0, 2.0]})
    eviction, speed = parallel_figure(table, "output_tps").data[0].dimensions
    assert (list(eviction["values"]), list(eviction.ticktext)) == ([1, 0], ["arc", "lru"])
    assert list(speed["values"]) == [1.0, 2.0]


def test_the_setting_that_matters_most_comes_first():
    fractions = importances_frame(
        {"quality": {"a": 0.2, "b": 0.8}, "output_tps": {"a": 0.3, "b": 0.7}}
    )
    figure = importances_figure(fractions)
    assert list(figure.data[0].y) == ["b", "a"]
    assert {trace.name for trace in figure.data} == {"quality", "output_tps"}
