"""Frames of predictions: what was predicted beside what was measured, and the band of errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from engine.contract.report import Metric
from tuner.formatting import has_interval
from tuner.store.snapshots import TrialSnapshot

PREDICTED, MEASURED = "predicted", "measured"
BAND = 0.9  # of the errors seen lie within the band
FEWEST = 2  # errors that give a band


@dataclass(frozen=True)
class ErrorBand:
    """The ratios of measured to predicted that BAND of n trials lie within."""

    low: float
    high: float
    n: int

    @property
    def sentence(self) -> str:
        """A summary for users."""
        return (
            f"{BAND:.0%} of {self.n} measurements are {self.low:.2f} to {self.high:.2f} times "
            "what was predicted"
        )


def predicted_frame(trials: Sequence[TrialSnapshot], metric: str) -> pd.DataFrame:
    """Columns number, predicted and measured with its interval, for trials that have both."""
    rows = [
        (trial.number, trial.predicted[metric], found.value, *_stated(found))
        for trial in trials
        if metric in trial.predicted and (found := trial.figures.get(metric)) is not None
    ]
    columns = ["number", PREDICTED, MEASURED, f"{MEASURED}_low", f"{MEASURED}_high"]
    return pd.DataFrame(rows, columns=columns)


def error_band(pairs: pd.DataFrame) -> ErrorBand | None:
    """The band of a `predicted_frame`; None with fewer than FEWEST trials."""
    known = pairs[(pairs[PREDICTED] > 0) & (pairs[MEASURED] > 0)]
    if len(known) < FEWEST:
        return None
    logs = np.log((known[MEASURED] / known[PREDICTED]).to_numpy(dtype=float))
    beside = (1 - BAND) / 2
    low, high = np.exp(np.quantile(logs, [beside, 1 - beside]))
    return ErrorBand(float(low), float(high), len(known))


def _stated(figure: Metric) -> tuple[float, float]:
    """Low and high; the value itself where there are too few repeats for an interval."""
    if has_interval(figure.n):
        return figure.low, figure.high
    return figure.value, figure.value
