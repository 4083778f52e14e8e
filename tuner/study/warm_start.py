"""Warm start: first points from earlier studies of the same model under another budget or on
another machine, or of another model of its family.

They are proposals, never measurements: each is run here like any other trial, and `tune show`
reports its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.pareto.front import Front
from tuner.pareto.probability import front_of
from tuner.search.space import CACHE, COUNT, Point, SearchSpace
from tuner.store.repository import Store
from tuner.store.snapshots import TRANSFER, StudySnapshot, TrialSnapshot

MOST_POINTS = 2
MOST_STUDIES = 5  # the newest comparable ones


def starting_points(
    store: Store, study: StudySnapshot, space: SearchSpace
) -> list[tuple[str, Point]]:
    """Origin and point of up to MOST_POINTS recommended configs, restricted to the settings of this
    space; those that do not fit are left out."""
    found: list[tuple[str, Point]] = []
    for other in _alike(store.studies(), study):
        front = front_of(other, store.trials(other))
        if not front.members:
            continue
        point = _translated(front.knee.params, space)
        if point not in [known for _, known in found] and space.fits(point):
            found.append((f"{TRANSFER}{other.name}", point))
        if len(found) == MOST_POINTS:
            break
    return found


def warm_start_gain(front: Front, trials: Sequence[TrialSnapshot]) -> list[str]:
    """The outcome of each warm-start point, one sentence each."""
    members = {member.number for member in front.members}
    sentences = []
    for trial in trials:
        if not (trial.origin or "").startswith(TRANSFER):
            continue
        source = (trial.origin or "").removeprefix(TRANSFER)
        if trial.number in members:
            came = "is on the front"
        elif trial.state == "COMPLETE":
            came = "is dominated"
        else:
            came = f"is {trial.state}"
        sentences.append(f"trial {trial.number}, proposed by study {source}, {came}")
    return sentences


def _alike(studies: Sequence[StudySnapshot], study: StudySnapshot) -> list[StudySnapshot]:
    """Studies of the same model, then of its family, each newest first."""
    others = [other for other in studies if other.id != study.id]
    same = [o for o in others if o.model_fingerprint == study.model_fingerprint]
    family = [o for o in others if o not in same and o.facts["family"] == study.facts["family"]]
    return [*same[::-1], *family[::-1]][:MOST_STUDIES]


def _translated(params: Mapping[str, Any], space: SearchSpace) -> Point:
    """Takes the other study's values for the settings of this space, the default's for the rest; if
    that does not fit here, also the default's cache size and then its micro-batches."""
    default = space.default()
    point = {
        p.name: params[p.name] if params.get(p.name) in p.choices else default[p.name]
        for p in space.parameters
    }
    for name in (CACHE, COUNT):
        if name in point and not space.fits(point):
            point[name] = default[name]
    return point
