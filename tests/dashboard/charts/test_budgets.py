"""The chart of budgets."""

import pandas as pd

from dashboard.charts.budgets import curve_figure


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
