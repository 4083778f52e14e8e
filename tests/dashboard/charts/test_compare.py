"""The chart of ratios."""

import pandas as pd

from dashboard.charts.compare import ratios_figure


def test_a_difference_beyond_noise_has_another_symbol():
    figures = pd.DataFrame(
        [("a", 1.5, 1.2, 1.8, "differs"), ("b", 1.0, 0.9, 1.1, "not told apart")],
        columns=["metric", "second / first", "low", "high", "verdict"],
    )
    differs, alike = ratios_figure(figures).data
    assert (list(differs.y), list(alike.y)) == (["a"], ["b"])
    assert differs.marker.symbol != alike.marker.symbol


def test_a_bound_below_zero_is_drawn_cut_off():
    figures = pd.DataFrame(
        [("stall_ms_per_token", 20.0, -20.0, 60.0, "not told apart")],
        columns=["metric", "second / first", "low", "high", "verdict"],
    )
    [points] = ratios_figure(figures).data
    assert list(points.error_x.arrayminus) == [18.0]
