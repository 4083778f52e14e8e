"""The correction of predictions by measurements."""

import numpy as np

from tuner.search.posterior import Axis, Regression

SIDE = 6


def axes() -> list[Axis]:
    first, second = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return [Axis(first.ravel() / (SIDE - 1), True), Axis(second.ravel() / (SIDE - 1), True)]


def test_effects_of_single_settings_are_told_from_few_measurements():
    one, two = axes()
    truth = np.log(20 * np.exp(0.9 * one.ranks - 0.4 * two.ranks))
    rng = np.random.default_rng(0)
    rows = rng.choice(SIDE * SIDE, 8, replace=False).tolist()
    prior = np.full(SIDE * SIDE, truth[rows].mean())
    found = Regression([one, two], SIDE * SIDE).posterior(
        prior, rows, truth[rows], np.full(8, 0.01)
    )
    assert np.abs(found.mean - truth).max() < 0.25
    assert np.abs(found.mean - truth).mean() < 0.06


def test_the_posterior_follows_measurements_and_is_wide_far_away():
    one, two = axes()
    prior = np.zeros(SIDE * SIDE)
    found = Regression([one, two], SIDE * SIDE).posterior(
        prior, [0], np.array([0.5]), np.array([0.02])
    )
    assert abs(found.mean[0] - 0.5) < 0.05
    assert found.deviation[0] < 0.05 < found.deviation[-1]


def test_a_prediction_that_is_off_everywhere_is_corrected_everywhere():
    one, two = axes()
    truth = 0.8 * one.ranks
    rows = [0, 7, 14, 21, 28, 35]
    found = Regression([one, two], SIDE * SIDE).posterior(
        truth - 0.7, rows, truth[rows], np.full(6, 0.02)
    )
    assert np.abs(found.mean - truth).max() < 0.2


def test_unknown_predictions_are_filled_between_known_ones():
    one, two = axes()
    truth = 1 + 0.5 * one.ranks + 0.2 * two.ranks
    known = list(range(0, SIDE * SIDE, 2))
    filled = Regression([one, two], SIDE * SIDE).fill(known, truth[known], SIDE * SIDE)
    assert np.abs(filled - truth).max() < 0.05
    assert (filled[known] == truth[known]).all()


def test_choices_without_order_are_equally_far_apart():
    kernel = Axis(np.array([0.0, 0.5, 1.0]), ordered=False).kernel(0.35)
    assert kernel[0, 1] == kernel[0, 2] < kernel[0, 0]
