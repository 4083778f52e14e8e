"""The chart of predictions."""

import pandas as pd
import pytest

from dashboard.charts.predictions import predicted_figure
from dashboard.frames.predictions import error_band

COLUMNS = ["number", "predicted", "measured", "measured_low", "measured_high"]
PAIRS = pd.DataFrame([(0, 10.0, 12.0, 11.0, 13.0), (1, 30.0, 20.0, 19.0, 21.0)], columns=COLUMNS)


def test_predictions_stand_beside_the_line_of_equality():
    line, points = predicted_figure(PAIRS, "output_tps").data
    assert list(line.x) == list(line.y)
    assert line.x[1] > 30.0
    assert list(points.x) == [10.0, 30.0]
    assert list(points.error_y.array) == [1.0, 1.0]


def test_nine_of_ten_errors_lie_within_the_band():
    rows = [(n, 10.0, 10.0 * ratio, 0.0, 0.0) for n, ratio in enumerate([0.5, *[1.0] * 18, 3.0])]
    pairs = pd.DataFrame(rows, columns=COLUMNS)
    band = error_band(pairs)
    assert band is not None
    ratios = pairs["measured"] / pairs["predicted"]
    inside = ((ratios >= band.low - 1e-9) & (ratios <= band.high + 1e-9)).mean()
    assert inside == pytest.approx(0.9)
    assert "90% of 20 measurements" in band.sentence
    shade = predicted_figure(pairs, "output_tps", band).data[0]
    assert shade.y[1] / shade.x[1] == pytest.approx(band.low)
    assert shade.y[2] / shade.x[2] == pytest.approx(band.high)


def test_one_error_gives_no_band():
    assert error_band(PAIRS[:1]) is None


def test_long_times_are_drawn_in_seconds():
    pairs = PAIRS.assign(predicted=66_032.0, measured=666_032.0, measured_high=700_000.0)
    figure = predicted_figure(pairs, "tpot_ms")
    assert figure.data[-1].y[0] == pytest.approx(666.032)
    assert " s " in figure.layout.yaxis.title.text
