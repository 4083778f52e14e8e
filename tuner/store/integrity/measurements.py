"""Samples and evaluations: each counted once, and every score derivable from them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from tuner.definition.objectives import SPEEDS
from tuner.store.integrity.finding import Finding, shortened
from tuner.store.snapshots import MEASURED_STATES
from tuner.store.tables import (
    ConfigurationRow,
    ExpertUseRow,
    QualityItemsRow,
    QualityRow,
    SampleRow,
    SentinelRow,
    StudyRow,
    TrialRow,
)

ANEW = (
    "the figures of this configuration cannot be trusted: name another store with --storage and "
    "run the study again"
)
SAME = 1e-9  # relative: sums may have run in another order
BATCH = 500  # configurations whose samples are read at once


def findings(session: Session) -> Iterator[Finding]:
    """What is wrong with samples, sentinels, expert counts, scores and evaluations."""
    yield from shortened(_samples_twice(session), "counted_twice", ANEW)
    yield from shortened(_repeats(session), "repeats", ANEW)
    yield from shortened(_experts_twice(session), "counted_twice", ANEW)
    yield from shortened(_machines(session), "samples", ANEW)
    yield from shortened(_units(session), "samples", ANEW)
    yield from shortened(_scores(session), "scores", ANEW)
    yield from shortened(_evaluations(session), "quality", ANEW)


def _samples_twice(session: Session) -> Iterator[str]:
    key = (SampleRow.configuration_id, SampleRow.repeat, SampleRow.metric)
    for configuration, repeat, metric in session.execute(
        select(*key).group_by(*key).having(func.count() > 1)
    ):
        yield f"{metric} of configuration {configuration}, repeat {repeat}, is counted twice"
    sentinels = select(SampleRow.sentinel_id).group_by(SampleRow.sentinel_id)
    several = func.count(func.distinct(SampleRow.configuration_id)) > 1
    for sentinel in session.scalars(sentinels.having(several)):
        yield f"the measurement of sentinel {sentinel} is counted for several configurations"


def _repeats(session: Session) -> Iterator[str]:
    """Repeats of a configuration run from 0 without a gap."""
    last, count = func.max(SampleRow.repeat), func.count(func.distinct(SampleRow.repeat))
    query = select(SampleRow.configuration_id, last, count, func.min(SampleRow.repeat))
    for configuration, highest, found, lowest in session.execute(
        query.group_by(SampleRow.configuration_id)
    ):
        if lowest != 0 or highest != found - 1:
            yield (
                f"configuration {configuration} has {found} repeats, numbered {lowest} to {highest}"
            )


def _experts_twice(session: Session) -> Iterator[str]:
    """A measurement counts experts at most once, and has one sentinel."""
    sentinels = session.execute(
        select(
            SampleRow.configuration_id, func.count(func.distinct(SampleRow.sentinel_id))
        ).group_by(SampleRow.configuration_id)
    )
    measured = {configuration: int(count) for configuration, count in sentinels}
    counted = session.execute(
        select(ExpertUseRow.configuration_id, func.count()).group_by(ExpertUseRow.configuration_id)
    )
    for configuration, count in counted:
        if count > measured.get(configuration, 0):
            yield (
                f"configuration {configuration} counts its experts {count} times in "
                f"{measured.get(configuration, 0)} measurements"
            )


def _machines(session: Session) -> Iterator[str]:
    """Samples, their sentinels, and the studies of their trials are of one machine."""
    apart = (
        select(SampleRow.id)
        .join(SentinelRow, SentinelRow.id == SampleRow.sentinel_id)
        .where(SentinelRow.machine_id != SampleRow.machine_id)
    )
    for sample in session.scalars(apart):
        yield f"sample {sample} and its sentinel are of different machines"
    foreign = (
        select(SampleRow.id, StudyRow.name)
        .join(TrialRow, TrialRow.id == SampleRow.trial_id)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .join(ConfigurationRow, ConfigurationRow.id == SampleRow.configuration_id)
        .where(
            (StudyRow.machine_id != SampleRow.machine_id)
            | (StudyRow.model_id != ConfigurationRow.model_id)
        )
    )
    for sample, name in session.execute(foreign):
        yield f"sample {sample} is of another machine or model than its study '{name}'"


def _units(session: Session) -> Iterator[str]:
    key = (SampleRow.configuration_id, SampleRow.metric)
    several = func.count(func.distinct(SampleRow.unit)) > 1
    for configuration, metric in session.execute(select(*key).group_by(*key).having(several)):
        yield f"{metric} of configuration {configuration} is stored in several units"


def _scores(session: Session) -> Iterator[str]:
    """A stored score is the mean of the samples that there were when the trial ended."""
    query = (
        select(TrialRow, StudyRow.name, StudyRow.machine_id)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .where(TrialRow.state.in_(MEASURED_STATES), TrialRow.configuration_id.is_not(None))
        .order_by(TrialRow.id)
    )
    for part in _parts(session.execute(query).all()):
        samples = _samples(session, {row.configuration_id or 0 for row, _, _ in part})
        for row, name, machine in part:
            for metric, score in row.scores.items():
                if metric not in SPEEDS:
                    continue
                values = samples.get((row.configuration_id or 0, machine, metric), [])
                if not _is_mean_of_first(score, values):
                    yield (
                        f"{metric} of trial {row.number} of study '{name}' is stored as {score}, "
                        f"which does not follow from its {len(values)} samples"
                    )


def _parts(
    rows: Sequence[Row[TrialRow, str, int]],
) -> Iterator[Sequence[Row[TrialRow, str, int]]]:
    return (rows[first : first + BATCH] for first in range(0, len(rows), BATCH))


def _samples(session: Session, configurations: set[int]) -> dict[tuple[int, int, str], list[float]]:
    found: dict[tuple[int, int, str], list[float]] = {}
    query = select(
        SampleRow.configuration_id, SampleRow.machine_id, SampleRow.metric, SampleRow.value
    ).where(SampleRow.configuration_id.in_(configurations), SampleRow.metric.in_(SPEEDS))
    for configuration, machine, metric, value in session.execute(query.order_by(SampleRow.id)):
        found.setdefault((configuration, machine, metric), []).append(value)
    return found


def _is_mean_of_first(score: object, values: Iterable[float]) -> bool:
    """Whether a score is the mean of the first few samples, of however many."""
    if not isinstance(score, int | float):
        return False
    sums = accumulate(values)
    return any(math.isclose(score, total / n, rel_tol=SAME) for n, total in enumerate(sums, 1))


def _evaluations(session: Session) -> Iterator[str]:
    key = (QualityItemsRow.quality_id, QualityItemsRow.task, QualityItemsRow.metric)
    for quality, task, metric in session.execute(
        select(*key).group_by(*key).having(func.count() > 1)
    ):
        yield f"{metric} of task {task} is counted twice in quality result {quality}"
    for row in session.scalars(select(QualityItemsRow)):
        if len(row.docs) != len(row.values) or len(set(row.docs)) != len(row.docs):
            yield f"the items of task {row.task} in quality result {row.quality_id} do not match"
    other = (
        select(TrialRow.number, StudyRow.name)
        .join(StudyRow, StudyRow.id == TrialRow.study_id)
        .join(QualityRow, QualityRow.id.in_((TrialRow.quality_id, TrialRow.reference_id)))
        .where(QualityRow.model_id != StudyRow.model_id)
    )
    for number, name in session.execute(other):
        yield f"the quality of trial {number} of study '{name}' is of another model"
