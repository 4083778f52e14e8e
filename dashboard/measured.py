"""The measured front that pages draw: under given limits, thinned to few trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard.thinning import thinned
from tuner.definition.study import Constraints
from tuner.pareto.front import Front
from tuner.pareto.limits import MEASURES, inside, judged, own_limits
from tuner.pareto.probability import likely_front, on_front
from tuner.store.database import Database
from tuner.store.overview import Overview
from tuner.store.points import Points
from tuner.store.repository import Store
from tuner.store.service import revision
from tuner.store.snapshots import StudySnapshot


@dataclass(frozen=True)
class MeasuredFront:
    """The front of a study's measured trials under given limits.

    front: its trials are those to draw; probability: of being on the front, by trial number;
    complete: number of completed trials; within: number of these within the limits.
    """

    front: Front
    probability: Mapping[int, float]
    complete: int
    within: int

    @property
    def sentence(self) -> str:
        """A summary for users."""
        drawn = len(self.front.trials)
        text = (
            f"{self.complete} trials, {self.within} within limits, "
            f"{len(self.front.members)} on the front."
        )
        if drawn == self.complete:
            return text
        return f"{text} The chart shows {drawn}: the front, trials within noise of it, the newest."


def measured_front(
    snapshot: Database, study: StudySnapshot, limits: Constraints | None = None
) -> MeasuredFront:
    """Reads the front of a study. limits: to use in place of the study's own."""
    own = own_limits(study)
    wanted = own if limits is None else limits
    objectives = study.definition["objectives"]
    moved = MEASURES if wanted != own else ()
    points = read_points(snapshot, study, tuple(dict.fromkeys((*objectives, *moved))))
    kept = inside(points, own, wanted)
    trials = Store(snapshot).trials(study, thinned(points, objectives, kept))
    front = likely_front(judged(trials, own, wanted), objectives, wanted.min_quality)
    return MeasuredFront(front, on_front(front), len(points), int(kept.sum()))


def read_points(
    snapshot: Database, study: StudySnapshot, names: tuple[str, ...], with_budgets: bool = False
) -> Points:
    """Reads all measured trials as columns; cached until the store changes."""
    return _kept_points(
        snapshot.url, study.id, names, with_budgets, revision(snapshot), snapshot, study
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept_points(
    url: str,
    study_id: int,
    names: tuple[str, ...],
    with_budgets: bool,
    written: tuple[Any, ...],
    _snapshot: Database,
    _study: StudySnapshot,
) -> Points:
    return Overview(_snapshot).points(_study, names, with_budgets)
