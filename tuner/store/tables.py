"""The database tables. Rows never leave this package: repository functions return snapshots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tuner.store.contents import check_row, readable


def now() -> datetime:
    """The present time in UTC, as every table stores it."""
    return datetime.now(UTC)


class Moment(TypeDecorator[datetime]):
    """A date and a time. Reading raises StoreError for what is none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Reads as the dialect does."""
        read = super().result_processor(dialect, coltype)
        return None if read is None else functools.partial(_read_moment, read)


def _read_moment(read: Callable[[Any], Any], value: Any) -> Any:
    with readable("date"):
        return read(value)


class Base(DeclarativeBase):
    """The base class of our tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON,
        dict[str, Any] | None: JSON(none_as_null=True),
        datetime: Moment(),
    }


@event.listens_for(Base, "load", propagate=True)
def _check_loaded(row: Base, _: object) -> None:
    check_row(row)


class ModelRow(Base):
    """A checkpoint, by its fingerprint."""

    __tablename__ = "model"
    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(512))
    revision: Mapped[str] = mapped_column(String(128))
    family: Mapped[str] = mapped_column(String(64))
    facts: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now)


class MachineRow(Base):
    """A machine, by its fingerprint."""

    __tablename__ = "machine"
    id: Mapped[int] = mapped_column(primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now)


class StudyRow(Base):
    """A study; parent_* identify the process that runs it, for users (the lock file decides);
    spent: seconds by stage; progress: what runs now, NULL when nothing does."""

    __tablename__ = "study"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    state: Mapped[str] = mapped_column(String(16))
    definition: Mapped[dict[str, Any]]
    search_digest: Mapped[str] = mapped_column(String(16))
    workload: Mapped[dict[str, Any]]
    workload_hash: Mapped[str] = mapped_column(String(16))
    parent_pid: Mapped[int | None]
    parent_host: Mapped[str | None] = mapped_column(String(200))
    spent: Mapped[dict[str, Any] | None]
    estimate_s: Mapped[float | None]
    progress: Mapped[dict[str, Any] | None]
    created: Mapped[datetime] = mapped_column(default=now)
    updated: Mapped[datetime] = mapped_column(default=now)


class ConfigurationRow(Base):
    """A resolved config of a model under a workload; samples belong to it, not to a trial."""

    __tablename__ = "configuration"
    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(String(16), unique=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    workload_hash: Mapped[str] = mapped_column(String(16))
    config: Mapped[dict[str, Any]]
    memory: Mapped[dict[str, Any]]


class QualityRow(Base):
    """The result of one lm-eval evaluation for a quality key."""

    __tablename__ = "quality_result"
    __table_args__ = (UniqueConstraint("model_id", "key"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    key: Mapped[str] = mapped_column(String(16))
    depends_on: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now)


class QualityItemsRow(Base):
    """One metric of every item behind a quality result: parallel lists of item numbers and
    values."""

    __tablename__ = "quality_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    quality_id: Mapped[int] = mapped_column(ForeignKey("quality_result.id"), index=True)
    task: Mapped[str] = mapped_column(String(200))
    metric: Mapped[str] = mapped_column(String(100))
    docs: Mapped[list[int]] = mapped_column(JSON)
    values: Mapped[list[float]] = mapped_column(JSON)


class TrialRow(Base):
    """One proposal of the sampler and its outcome.

    predicted: speeds by replay, before it ran; bounds: objectives that a PRUNED trial got as an
    optimistic bound, without an evaluation; engine_s: seconds that the engine was busy; origin: why
    it was run; worker: the process that ran it.
    """

    __tablename__ = "trial"
    __table_args__ = (UniqueConstraint("study_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    failure: Mapped[str | None] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    params: Mapped[dict[str, Any]]
    scores: Mapped[dict[str, Any]] = mapped_column(default=dict)
    violations: Mapped[dict[str, Any]] = mapped_column(default=dict)
    memory: Mapped[dict[str, Any]] = mapped_column(default=dict)
    predicted: Mapped[dict[str, Any] | None]
    bounds: Mapped[dict[str, Any] | None]
    engine_s: Mapped[float | None]
    origin: Mapped[str | None] = mapped_column(String(200))
    worker: Mapped[str | None] = mapped_column(String(200))
    configuration_id: Mapped[int | None] = mapped_column(ForeignKey("configuration.id"))
    quality_id: Mapped[int | None] = mapped_column(ForeignKey("quality_result.id"))
    reference_id: Mapped[int | None] = mapped_column(ForeignKey("quality_result.id"))
    started: Mapped[datetime] = mapped_column(default=now)
    finished: Mapped[datetime | None]


class SentinelRow(Base):
    """Times of a fixed kernel and a fixed read, measured beside samples."""

    __tablename__ = "sentinel"
    id: Mapped[int] = mapped_column(primary_key=True)
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    compute_ms: Mapped[float]
    read_ms: Mapped[float]
    created: Mapped[datetime] = mapped_column(default=now)


class SampleRow(Base):
    """One metric of one repeat. role: search, confirm (in a fresh process, after the search) or
    verify."""

    __tablename__ = "sample"
    # covers reads of one metric over very many configurations
    __table_args__ = (
        Index("ix_sample_pooled", "configuration_id", "machine_id", "metric", "role", "value"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    configuration_id: Mapped[int] = mapped_column(ForeignKey("configuration.id"))
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    trial_id: Mapped[int | None] = mapped_column(ForeignKey("trial.id"))
    sentinel_id: Mapped[int] = mapped_column(ForeignKey("sentinel.id"))
    repeat: Mapped[int]
    role: Mapped[str] = mapped_column(String(10), default="search", server_default="search")
    metric: Mapped[str] = mapped_column(String(64))
    value: Mapped[float]
    unit: Mapped[str] = mapped_column(String(16))


class ExpertUseRow(Base):
    """The expert use that one measurement of a configuration counted per layer: ExpertUse as
    JSON."""

    __tablename__ = "expert_use"
    id: Mapped[int] = mapped_column(primary_key=True)
    configuration_id: Mapped[int] = mapped_column(ForeignKey("configuration.id"), index=True)
    machine_id: Mapped[int] = mapped_column(ForeignKey("machine.id"))
    counts: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now)


class ExportRow(Base):
    """An exported deployment YAML."""

    __tablename__ = "export"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    trial_id: Mapped[int] = mapped_column(ForeignKey("trial.id"))
    pick: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(default=now)


_UNDER_WAY = text("state IN ('QUEUED', 'RUNNING', 'STOPPING')")


class JobRow(Base):
    """A study requested through the service; host: the machine that runs it. One job per study at a
    time."""

    __tablename__ = "job"
    __table_args__ = (
        Index(
            "uq_job_under_way",
            "study_name",
            unique=True,
            sqlite_where=_UNDER_WAY,
            postgresql_where=_UNDER_WAY,
        ),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    study_name: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(16))
    request: Mapped[dict[str, Any]]
    host: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(default=now)
    updated: Mapped[datetime] = mapped_column(default=now)


class TokenRow(Base):
    """A bearer token of the service; only its hash is kept."""

    __tablename__ = "token"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    created: Mapped[datetime] = mapped_column(default=now)
    revoked: Mapped[datetime | None]


class TelemetryRow(Base):
    """A deployment's telemetry for one time window."""

    __tablename__ = "telemetry"
    id: Mapped[int] = mapped_column(primary_key=True)
    deployment: Mapped[str] = mapped_column(String(200))
    payload: Mapped[dict[str, Any]]
    created: Mapped[datetime] = mapped_column(default=now, index=True)
