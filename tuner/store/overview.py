"""Queries of the dashboard's pages: counts, columns and single pages of trials, never a whole
study.

Reads, never writes. Run several queries within `Database.read_snapshot` if their answers must
agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, cast, func, select

from engine.contract.report import ExpertUse
from tuner.store.contents import expert_use, readable
from tuner.store.database import Database
from tuner.store.points import Points, study_points
from tuner.store.snapshots import StudySnapshot
from tuner.store.tables import ExpertUseRow, ExportRow, QualityRow, TrialRow


@dataclass(frozen=True)
class TrialFilter:
    """Selects trials of a study. Empty: all. setting, value: of the proposed point, as text."""

    states: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    setting: str | None = None
    value: str | None = None


@dataclass(frozen=True)
class RunningTrial:
    """A running trial."""

    number: int
    params: dict[str, Any]
    worker: str | None
    started: datetime


@dataclass(frozen=True)
class WrittenExport:
    """An exported deployment YAML. content: the file."""

    trial: int
    pick: str
    path: str
    content: str
    created: datetime


@dataclass(frozen=True)
class Overview:
    """Queries over one open database."""

    database: Database

    def points(
        self, study: StudySnapshot, names: Sequence[str], with_budgets: bool = False
    ) -> Points:
        """All COMPLETE trials as columns."""
        with self.database.session() as session:
            return study_points(session, study, names, with_budgets)

    def count(self, study: StudySnapshot, wanted: TrialFilter) -> int:
        """The number of matching trials."""
        with self.database.session() as session:
            query = select(func.count()).select_from(TrialRow)
            return int(session.scalar(query.where(*_conditions(study, wanted))) or 0)

    def numbers(
        self, study: StudySnapshot, wanted: TrialFilter, skip: int, most: int
    ) -> tuple[int, ...]:
        """Numbers of at most `most` matching trials, newest first, after skipping some."""
        with self.database.session() as session:
            query = select(TrialRow.number).where(*_conditions(study, wanted))
            newest = query.order_by(TrialRow.number.desc()).offset(skip).limit(most)
            return tuple(session.scalars(newest))

    def failures(self, study: StudySnapshot) -> dict[str, int]:
        """The number of trials by failure class."""
        query = select(TrialRow.failure, func.count()).where(
            TrialRow.study_id == study.id, TrialRow.failure.is_not(None)
        )
        with self.database.session() as session:
            rows = session.execute(query.group_by(TrialRow.failure).order_by(TrialRow.failure))
            return {str(failure): int(count) for failure, count in rows}

    def settings(self, study: StudySnapshot) -> tuple[str, ...]:
        """The names of the searched settings, from the first trial."""
        with self.database.session() as session:
            query = select(TrialRow.params).where(TrialRow.study_id == study.id)
            params = session.scalar(query.order_by(TrialRow.number).limit(1))
            with readable("settings of a study"):
                return tuple(dict(params or {}))

    def values(self, study: StudySnapshot, setting: str) -> tuple[str, ...]:
        """All values that were proposed for a setting, as text."""
        with self.database.session() as session:
            query = select(_text_of(setting)).where(TrialRow.study_id == study.id).distinct()
            return tuple(
                sorted(str(value) for value in session.scalars(query) if value is not None)
            )

    def running(self, study: StudySnapshot) -> tuple[RunningTrial, ...]:
        """The trials that run now."""
        query = select(TrialRow).where(TrialRow.study_id == study.id, TrialRow.state == "RUNNING")
        with self.database.session() as session:
            return tuple(
                RunningTrial(row.number, row.params, row.worker, row.started)
                for row in session.scalars(query.order_by(TrialRow.number))
            )

    def expert_use(self, configuration_id: int, machine_id: int) -> ExpertUse | None:
        """The expert use of all measurements of a configuration; None if none was recorded, as in
        earlier releases."""
        query = select(ExpertUseRow.counts).where(
            ExpertUseRow.configuration_id == configuration_id,
            ExpertUseRow.machine_id == machine_id,
        )
        found: ExpertUse | None = None
        with self.database.session() as session:
            for counts in session.scalars(query.order_by(ExpertUseRow.id)):
                use = expert_use(counts)
                with readable("expert use"):  # of other layers than the one before
                    found = use if found is None else found.plus(use)
        return found

    def exports(self, study: StudySnapshot) -> tuple[WrittenExport, ...]:
        """Deployment files of a study, newest first."""
        query = (
            select(ExportRow, TrialRow.number)
            .join(TrialRow, TrialRow.id == ExportRow.trial_id)
            .where(ExportRow.study_id == study.id)
            .order_by(ExportRow.id.desc())
        )
        with self.database.session() as session:
            return tuple(
                WrittenExport(number, row.pick, row.path, row.content, row.created)
                for row, number in session.execute(query)
            )

    def versions(self, study: StudySnapshot) -> tuple[dict[str, str], ...]:
        """Each distinct set of package versions that evaluated this study's model."""
        query = select(QualityRow.depends_on).where(QualityRow.model_id == study.model_id)
        with self.database.session() as session:
            found = [_versions(row) for row in session.scalars(query)]
        return tuple({tuple(sorted(one.items())): one for one in found if one}.values())


def _versions(depends_on: Any) -> dict[str, str]:
    """The package versions that a quality result depends on."""
    with readable("versions of a quality result"):
        found = dict(depends_on).get("versions", {})
        if not all(isinstance(version, str) for version in found.values()):
            raise ValueError("a version is no text")
        return dict(found)


def _conditions(study: StudySnapshot, wanted: TrialFilter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [TrialRow.study_id == study.id]
    if wanted.states:
        found.append(TrialRow.state.in_(wanted.states))
    if wanted.failures:
        found.append(TrialRow.failure.in_(wanted.failures))
    if wanted.setting is not None and wanted.value is not None:
        found.append(_text_of(wanted.setting) == wanted.value)
    return found


def _text_of(setting: str) -> ColumnElement[str]:
    """A proposed value as text, the same in both databases except for true and false."""
    return cast(TrialRow.params[setting].as_string(), String)
