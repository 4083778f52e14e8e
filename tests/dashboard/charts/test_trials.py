"""Charts of trials, budgets, experts and comparisons."""

import pandas as pd

from dashboard.charts.budgets import curve_figure
from dashboard.charts.compare import ratios_figure
from dashboard.charts.experts import activations_figure, rates_figure
from dashboard.charts.trials import (
    failures_figure,
    importances_figure,
    parallel_figure,
    predicted_figure,
)
from dashboard.frames.experts import activations_frame, layers_frame
from dashboard.frames.trials import failures_frame, importances_frame
from engine.report import ExpertUse

USE = ExpertUse(((3, 1), (0, 0)), (3, 0), (1, 0), (0, 4), (0, 2))


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
    shares = importances_frame(
        {"quality": {"a": 0.2, "b": 0.8}, "output_tps": {"a": 0.3, "b": 0.7}}
    )
    figure = importances_figure(shares)
    assert list(figure.data[0].y) == ["b", "a"]
    assert {trace.name for trace in figure.data} == {"quality", "output_tps"}


def test_predictions_stand_beside_the_line_of_equality():
    pairs = pd.DataFrame(
        [(0, 10.0, 12.0, 11.0, 13.0), (1, 30.0, 20.0, 19.0, 21.0)],
        columns=["number", "predicted", "measured", "measured_low", "measured_high"],
    )
    line, points = predicted_figure(pairs, "output_tps").data
    assert list(line.x) == list(line.y) == [10.0, 30.0]
    assert list(points.error_y.array) == [1.0, 1.0]


def test_a_curve_has_one_point_a_budget_with_its_interval():
    frame = pd.DataFrame(
        {
            "budget (GB)": [4.0, 8.0],
            "fastest tokens/s": [10.0, 14.0],
            "low": [9.0, 13.0],
            "high": [11.0, 16.0],
        }
    )
    (line,) = curve_figure(frame).data
    assert (tuple(line.x), tuple(line.y)) == ((4.0, 8.0), (10.0, 14.0))
    assert list(line.error_y.array) == [1.0, 2.0]


def test_activations_are_shares_of_each_layers_choices():
    shares = activations_frame(USE)
    assert shares.to_numpy().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert activations_figure(shares).layout.yaxis.autorange == "reversed"


def test_layers_without_look_ups_or_predictions_have_no_rate():
    layers = layers_frame(USE)
    assert layers["hit rate"].tolist()[0] == 0.75
    assert layers["hit rate"].isna().tolist() == [False, True]
    assert layers["prefetch precision"].isna().tolist() == [True, False]
    hits, precision = rates_figure(layers).data
    assert (list(hits.x), list(precision.x)) == ([0], [1])


def test_a_difference_beyond_noise_has_another_symbol():
    figures = pd.DataFrame(
        [("a", 1.5, 1.2, 1.8, "differs"), ("b", 1.0, 0.9, 1.1, "not told apart")],
        columns=["metric", "second / first", "low", "high", "verdict"],
    )
    differs, alike = ratios_figure(figures).data
    assert (list(differs.y), list(alike.y)) == (["a"], ["b"])
    assert differs.marker.symbol != alike.marker.symbol
