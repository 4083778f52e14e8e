"""Studies, trials and jobs: lawful states, each finished trial with its outcome, no number lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from typing import get_args

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from tuner.processes.identity import is_gone
from tuner.store.integrity.finding import Finding, shortened
from tuner.store.service import JOB_STATES
from tuner.store.snapshots import MEASURED_STATES, StudyState, TrialState
from tuner.store.tables import ConfigurationRow, JobRow, StudyRow, TrialRow

ANEW = "give the study another name with --study and run it again"
AGAIN = "run the study again: it marks the trial interrupted, and goes on"


def findings(session: Session) -> Iterator[Finding]:
    """What is wrong with states, outcomes and numbers."""
    for study in session.scalars(select(StudyRow).order_by(StudyRow.id)):
        rows = session.scalars(
            select(TrialRow).where(TrialRow.study_id == study.id).order_by(TrialRow.number)
        ).all()
        yield from _study(study)
        told = (
            f"trial {row.number} of study '{study.name}' {wrong}"
            for row in rows
            for wrong in _wrong(row)
        )
        yield from shortened(told, "outcomes", ANEW)
        yield from _running(study, rows)
        yield from _mixed(session, study)
    for job in session.scalars(select(JobRow).where(JobRow.state.not_in(JOB_STATES))):
        yield Finding("states", f"job {job.id} is in no known state ('{job.state}')", ANEW)


def _study(study: StudyRow) -> Iterator[Finding]:
    if study.state not in get_args(StudyState):
        yield Finding(
            "states", f"study '{study.name}' is in no known state ('{study.state}')", ANEW
        )
    if study.state != "RUNNING":
        return
    here = study.parent_host == socket.gethostname()
    if study.parent_pid is None or (here and not psutil.pid_exists(study.parent_pid)):
        yield Finding(
            "running",
            f"study '{study.name}' is marked as running, but its process is gone",
            "run the study again: it goes on where it was stopped",
            mended_by_next_start=True,
        )


def _wrong(row: TrialRow) -> Iterator[str]:
    """What is wrong with one trial, as the end of a sentence."""
    if row.number < 0:
        yield "has a number below 0"
    if row.state not in get_args(TrialState):
        yield f"is in no known state ('{row.state}')"
        return
    if row.state == "RUNNING":
        if row.finished is not None:
            yield "is marked as running although it has ended"
        return
    if row.finished is None:
        yield f"is {row.state}, but has no end"
    if row.state in MEASURED_STATES:
        if row.configuration_id is None:
            yield f"is {row.state}, but names no configuration"
        if not row.scores:
            yield f"is {row.state}, but has no scores"
    elif not (row.reason and row.failure):
        yield f"is {row.state}, but does not say why"
    evaluated = row.quality_id is not None and row.reference_id is not None
    if row.state == "COMPLETE" and "quality" in row.scores and not evaluated:
        yield "has a quality without the evaluation that it comes from"


def _running(study: StudyRow, rows: Sequence[TrialRow]) -> Iterator[Finding]:
    for row in rows:
        if row.state == "RUNNING" and _has_ended(row.worker):
            yield Finding(
                "running",
                f"trial {row.number} of study '{study.name}' is marked as running, but its process "
                "is gone",
                AGAIN,
                mended_by_next_start=True,
            )


def _has_ended(worker: str | None) -> bool:
    try:
        return is_gone(worker)
    except ValueError:  # no id of a process
        return True


def _mixed(session: Session, study: StudyRow) -> Iterator[Finding]:
    """Trials whose configuration is of another model or workload."""
    other = session.execute(
        select(TrialRow.number)
        .join(ConfigurationRow, ConfigurationRow.id == TrialRow.configuration_id)
        .where(
            TrialRow.study_id == study.id,
            (ConfigurationRow.model_id != study.model_id)
            | (ConfigurationRow.workload_hash != study.workload_hash),
        )
    ).scalars()
    told = (
        f"trial {number} of study '{study.name}' names a configuration of another model or workload"
        for number in other
    )
    yield from shortened(told, "outcomes", ANEW)
