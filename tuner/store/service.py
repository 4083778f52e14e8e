"""The service's queries: its queue of jobs, its tokens, the progress of studies.

Each method is one short transaction. A job is QUEUED, then RUNNING on one machine, STOPPING once a
stop was requested, and ends as DONE, FAILED or STOPPED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import exc, func, select, update
from sqlalchemy.orm import Session

from tuner.errors import BusyStudyError, FullQueueError, UsageError
from tuner.store.contents import readable
from tuner.store.database import Database
from tuner.store.reading import pools, trial_snapshot
from tuner.store.snapshots import TrialSnapshot
from tuner.store.tables import JobRow, SampleRow, StudyRow, TokenRow, TrialRow, now

JobState = Literal["QUEUED", "RUNNING", "STOPPING", "DONE", "FAILED", "STOPPED"]
JOB_STATES: tuple[JobState, ...] = ("QUEUED", "RUNNING", "STOPPING", "DONE", "FAILED", "STOPPED")
UNDER_WAY: tuple[JobState, ...] = ("QUEUED", "RUNNING", "STOPPING")


@dataclass(frozen=True)
class JobSnapshot:
    """The state of a job. host: the machine that runs or ran it, None while it waits."""

    id: int
    study_name: str
    state: JobState
    request: Mapping[str, Any]
    host: str | None
    error: str | None
    created: datetime
    updated: datetime

    @property
    def under_way(self) -> bool:
        """Whether it waits or runs."""
        return self.state in UNDER_WAY


@dataclass(frozen=True)
class TokenSnapshot:
    """A bearer token without its secret, of which only the hash is known."""

    id: int
    name: str
    hash: str
    created: datetime
    revoked: datetime | None


@dataclass(frozen=True)
class Jobs:
    """The queue, over one open database; only `latest` and the counts may be read-only."""

    database: Database

    def add(self, study_name: str, request: Mapping[str, Any], max_waiting: int) -> JobSnapshot:
        """Adds a QUEUED job; raises BusyStudyError or FullQueueError if it is not accepted."""
        busy = BusyStudyError(
            f"study '{study_name}' waits or runs already: wait for its end, stop it, or give this "
            "one another name"
        )
        with self.database.session() as session:
            waiting = session.scalar(
                select(func.count()).select_from(JobRow).where(JobRow.state == "QUEUED")
            )
            if _under_way(session, study_name) is not None:
                raise busy
            if (waiting or 0) >= max_waiting:
                raise FullQueueError(f"{waiting} studies wait already: try again later")
            row = JobRow(study_name=study_name, state="QUEUED", request=dict(request))
            session.add(row)
            try:
                session.flush()
            except exc.IntegrityError:  # another process was faster
                raise busy from None
            return _job_snapshot(row)

    def claim(self, host: str) -> JobSnapshot | None:
        """Makes the longest waiting job RUNNING on this machine; None if none waits."""
        with self.database.session() as session:
            row = session.scalar(
                select(JobRow)
                .where(JobRow.state == "QUEUED")
                .order_by(JobRow.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            if row is None:
                return None
            row.state, row.host, row.updated = "RUNNING", host, now()
            return _job_snapshot(row)

    def settle(self, job_id: int, state: JobState, error: str | None = None) -> None:
        """Writes the end of a job, or that it waits again."""
        with self.database.session() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job_id)
                .values(state=state, error=error, updated=now())
            )

    def recover(self, host: str) -> None:
        """Recovers jobs that a dead service left on this machine: running ones are queued again,
        stopping ones end."""
        with self.database.session() as session:
            for left, becomes in (("RUNNING", "QUEUED"), ("STOPPING", "STOPPED")):
                session.execute(
                    update(JobRow)
                    .where(JobRow.host == host, JobRow.state == left)
                    .values(state=becomes, updated=now())
                )

    def request_stop(self, study_name: str) -> JobSnapshot | None:
        """Ends a waiting job at once and asks a running one to stop; None if there is neither."""
        with self.database.session() as session:
            row = _under_way(session, study_name)
            if row is None:
                return None
            row.state = "STOPPED" if row.state == "QUEUED" else "STOPPING"
            row.updated = now()
            return _job_snapshot(row)

    def state(self, job_id: int) -> JobState:
        """The state of this job."""
        with self.database.session() as session:
            return session.get_one(JobRow, job_id).state  # type: ignore[return-value]  # ours only

    def latest(self, study_name: str | None = None) -> dict[str, JobSnapshot]:
        """The newest job of every study, or of one, by the study's name."""
        newest = select(func.max(JobRow.id)).group_by(JobRow.study_name)
        if study_name is not None:
            newest = newest.where(JobRow.study_name == study_name)
        with self.database.session() as session:
            rows = session.scalars(select(JobRow).where(JobRow.id.in_(newest)).order_by(JobRow.id))
            return {row.study_name: _job_snapshot(row) for row in rows}

    def count_by_state(self) -> dict[str, int]:
        """The number of jobs by state."""
        with self.database.session() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return dict(rows.all())


@dataclass(frozen=True)
class Tokens:
    """Bearer tokens, by name for users and by id for requests."""

    database: Database

    def add(self, name: str, digest: str) -> TokenSnapshot:
        """Stores the hash of a new secret; raises UsageError if the name was ever used before."""
        with self.database.session() as session:
            if session.scalar(select(TokenRow).where(TokenRow.name == name)) is not None:
                raise UsageError(
                    f"there is, or was, a token '{name}': give this one another name, so that it "
                    "stays clear which is meant"
                )
            row = TokenRow(name=name, hash=digest)
            session.add(row)
            session.flush()
            return _token_snapshot(row)

    def all(self) -> tuple[TokenSnapshot, ...]:
        """All tokens, including revoked ones, oldest first."""
        with self.database.session() as session:
            rows = session.scalars(select(TokenRow).order_by(TokenRow.id))
            return tuple(_token_snapshot(row) for row in rows)

    def find(self, token_id: int) -> TokenSnapshot | None:
        """The token of this id; None if there is none."""
        with self.database.session() as session:
            row = session.get(TokenRow, token_id)
            return None if row is None else _token_snapshot(row)

    def revoke(self, name: str) -> TokenSnapshot:
        """Revokes a token, so that requests with it are refused; UsageError for an unknown name."""
        with self.database.session() as session:
            row = session.scalar(select(TokenRow).where(TokenRow.name == name))
            if row is None:
                raise UsageError(f"there is no token '{name}': see `tune service token list`")
            row.revoked = row.revoked or now()
            return _token_snapshot(row)


def ended_trials(database: Database, study_id: int, after: int) -> tuple[TrialSnapshot, ...]:
    """Trials in the order in which they ended, skipping the first `after`; without config and
    quality."""
    query = (
        select(TrialRow)
        .where(TrialRow.study_id == study_id, TrialRow.finished.is_not(None))
        .order_by(TrialRow.finished, TrialRow.id)
        .offset(after)
    )
    with database.session() as session:
        rows = session.scalars(query).all()
        if not rows:
            return ()
        ids = {row.configuration_id for row in rows if row.configuration_id is not None}
        pooled = pools(session, ids, session.get_one(StudyRow, study_id).machine_id)
        return tuple(trial_snapshot(row, pooled, {}, {}) for row in rows)


def trials_by_study(database: Database) -> dict[tuple[str, str], int]:
    """The number of trials by study name and trial state."""
    query = (
        select(StudyRow.name, TrialRow.state, func.count())
        .join(TrialRow, TrialRow.study_id == StudyRow.id)
        .group_by(StudyRow.name, TrialRow.state)
    )
    with database.session() as session:
        return {(name, state): count for name, state, count in session.execute(query)}


def revision(database: Database) -> tuple[Any, ...]:
    """A value that changes whenever a trial ends, a sample is added or a study changes state."""
    with database.session() as session:
        ended = session.execute(
            select(func.count(TrialRow.finished), func.max(TrialRow.finished))
        ).one()
        sample = session.scalar(select(func.max(SampleRow.id)))
        study = session.scalar(select(func.max(StudyRow.updated)))
        return (*ended, sample, study)


def _under_way(session: Session, study_name: str) -> JobRow | None:
    return session.scalar(
        select(JobRow)
        .where(JobRow.study_name == study_name, JobRow.state.in_(UNDER_WAY))
        .with_for_update()
    )


def _job_snapshot(row: JobRow) -> JobSnapshot:
    with readable(f"job {row.id}"):
        if row.state not in JOB_STATES or not isinstance(row.request["model"], str):
            raise ValueError("it is in no known state, or names no model")
    return JobSnapshot(
        id=row.id,
        study_name=row.study_name,
        state=row.state,
        request=row.request,
        host=row.host,
        error=row.error,
        created=row.created,
        updated=row.updated,
    )


def _token_snapshot(row: TokenRow) -> TokenSnapshot:
    return TokenSnapshot(row.id, row.name, row.hash, row.created, row.revoked)
