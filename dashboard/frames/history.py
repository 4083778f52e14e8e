"""The frame of the best so far: the recommended trial after each trial that ended."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from tuner.pareto.probability import front_of
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

MOST = 60  # moments at which the front is computed; it is the costly part


def history_frame(study: StudySnapshot, trials: Sequence[TrialSnapshot]) -> pd.DataFrame:
    """One row a moment at which the recommended trial changed, and the last: columns minutes since
    the study began, number, and the objectives.

    Figures are those known now, so that a trial which was confirmed later has one figure.
    """
    objectives = list(study.definition["objectives"])
    ended = sorted(
        (trial for trial in trials if trial.state == "COMPLETE" and trial.finished is not None),
        key=lambda trial: (trial.finished, trial.number),
    )
    rows: list[dict[str, object]] = []
    for count in _moments(len(ended)):
        front = front_of(study, ended[:count])
        last = count == len(ended)
        if not front.members or (rows and rows[-1]["number"] == front.knee.number and not last):
            continue
        knee, finished = front.knee, ended[count - 1].finished
        assert finished is not None
        minutes = (finished - study.created).total_seconds() / 60
        scores = {name: knee.scores[name] for name in objectives}
        rows.append({"minutes": max(0.0, minutes), "number": knee.number, **scores})
    return pd.DataFrame(rows, columns=["minutes", "number", *objectives])


def _moments(trials: int) -> list[int]:
    """After which of so many trials to look: all of them, or MOST evenly spread."""
    if trials <= MOST:
        return list(range(1, trials + 1))
    return sorted({round((place + 1) * trials / MOST) for place in range(MOST)})
