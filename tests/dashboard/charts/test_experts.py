"""Charts of experts: the heat map and rates by layer."""

from dashboard.charts.experts import activations_figure, rates_figure
from dashboard.frames.experts import activations_frame, layers_frame
from engine.contract.report import ExpertUse

USE = ExpertUse(((3, 1), (0, 0)), (3, 0), (1, 0), (0, 4), (0, 2))


def test_activations_are_shares_of_each_layers_choices():
    fractions = activations_frame(USE)
    assert fractions.to_numpy().tolist() == [[0.75, 0.25], [0.0, 0.0]]
    assert activations_figure(fractions).layout.yaxis.autorange == "reversed"


def test_layers_without_look_ups_or_predictions_have_no_rate():
    layers = layers_frame(USE)
    assert layers["hit rate"].tolist()[0] == 0.75
    assert layers["hit rate"].isna().tolist() == [False, True]
    assert layers["prefetch precision"].isna().tolist() == [True, False]
    hits, precision = rates_figure(layers).data
    assert (list(hits.x), list(precision.x)) == ([0], [1])
