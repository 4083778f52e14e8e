"""The service's response documents, as in the OpenAPI document; the keys are those of `--json`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from tuner.pareto.front import Front
from tuner.store.contents import readable
from tuner.store.service import JobSnapshot, JobState
from tuner.store.snapshots import StudySnapshot, TrialSnapshot


def _in_utc(moment: datetime) -> datetime:
    """Adds the UTC zone, which SQLite does not keep."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


UtcDatetime = Annotated[datetime, AfterValidator(_in_utc)]


class JobDocument(BaseModel):
    """The newest job of a study. error: why it failed, one sentence."""

    id: int
    state: JobState
    host: str | None
    error: str | None
    created: UtcDatetime
    updated: UtcDatetime

    @classmethod
    def of(cls, job: JobSnapshot) -> JobDocument:
        """Leaves out the request, which may be long."""
        return cls(
            id=job.id,
            state=job.state,
            host=job.host,
            error=job.error,
            created=job.created,
            updated=job.updated,
        )


class ProgressDocument(BaseModel):
    """What a study does now: a stage with its steps, of the trial of this number, and estimates of
    the seconds left; time: when it was written. null: not counted, or nothing to go by."""

    stage: str
    done: int
    total: int | None
    stage_s: float
    elapsed_s: float
    trial: int | None
    trials_done: int
    trials_planned: int | None
    trial_left_s: float | None
    study_left_s: float | None
    time: datetime


class StudyDocument(BaseModel):
    """A study. state: its job's until it has begun, then its own; spent_s: seconds by stage;
    progress: what it does now, None when it does not run; job: None if the study was not requested
    through a service."""

    name: str
    model: str
    model_fingerprint: str | None
    state: str
    trials: int
    trials_by_state: dict[str, int]
    spent_s: dict[str, float]
    progress: ProgressDocument | None
    created: UtcDatetime
    updated: UtcDatetime
    job: JobDocument | None

    @classmethod
    def of(cls, study: StudySnapshot, job: JobSnapshot | None) -> StudyDocument:
        """Builds the document of a study that has begun."""
        with readable(f"study '{study.name}'"):  # its progress
            return cls(**study.to_json(), job=JobDocument.of(job) if job else None)

    @classmethod
    def waiting(cls, job: JobSnapshot) -> StudyDocument:
        """Builds the document of a study that has not begun: only its request is known."""
        return cls(
            name=job.study_name,
            model=str(job.request["model"]),
            model_fingerprint=None,
            state=job.state,
            trials=0,
            trials_by_state={},
            spent_s={},
            progress=None,
            created=job.created,
            updated=job.updated,
            job=JobDocument.of(job),
        )


class StudiesDocument(BaseModel):
    """All studies, oldest first, then those that have not begun."""

    studies: list[StudyDocument]


class TrialsDocument(BaseModel):
    """All trials of a study, in order."""

    trials: list[dict[str, Any]]

    @classmethod
    def of(cls, trials: tuple[TrialSnapshot, ...]) -> TrialsDocument:
        """Builds the document as in `tune show --json`."""
        return cls(trials=[trial.to_json() for trial in trials])


class FrontDocument(BaseModel):
    """The non-dominated trials, fastest first. recommended: a trial's number."""

    objectives: list[str]
    front: list[dict[str, Any]]
    recommended: int | None

    @classmethod
    def of(cls, front: Front) -> FrontDocument:
        """The knee is the recommended trial."""
        return cls(
            objectives=list(front.objectives),
            front=[trial.to_json() for trial in front.members],
            recommended=front.knee.number if front.members else None,
        )


class HealthDocument(BaseModel):
    """status: `ok` if the store answers and jobs are run."""

    status: str
    jobs: dict[str, int]
