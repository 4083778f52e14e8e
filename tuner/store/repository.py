"""Store: all queries and writes of studies, with plain values in and out.

Each method is one short transaction, so that killing the program at any time loses at most the
running trial.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update

from engine.config.settings import EngineConfig
from engine.contract.report import QualityReport, Report
from engine.contract.requests import Workload
from engine.facts.machine import Hardware
from engine.facts.model import ModelFacts
from engine.files import short_digest
from engine.memory.plan import MemoryPlan
from tuner.definition.study import StudyDefinition, definition_json
from tuner.definition.workload import workload_hash
from tuner.errors import MissingStudyError
from tuner.store.contents import quality_report
from tuner.store.database import Database
from tuner.store.identity import check_same_question, machine_id_of, model_id_of
from tuner.store.once import kept_once
from tuner.store.outcome import TrialOutcome
from tuner.store.reading import (
    Pool,
    pools,
    quality_result,
    reports_with_items,
    study_snapshot,
    trial_snapshot,
)
from tuner.store.snapshots import (
    QualityResult,
    Role,
    StudySnapshot,
    StudyState,
    TelemetrySnapshot,
    TrialSnapshot,
)
from tuner.store.tables import (
    ConfigurationRow,
    ExpertUseRow,
    ExportRow,
    QualityItemsRow,
    QualityRow,
    SampleRow,
    SentinelRow,
    StudyRow,
    TelemetryRow,
    TrialRow,
    now,
)


@dataclass(frozen=True)
class Store:
    """The record of studies, over one open database."""

    database: Database

    def begin_study(
        self,
        definition: StudyDefinition,
        facts: ModelFacts,
        hardware: Hardware,
        workload: Workload,
    ) -> StudySnapshot:
        """Creates the study, or continues the one of this name.

        Raises StudyError when the name belongs to another model, workload or definition.
        """
        name, digest = definition.study_name, definition.search_digest()
        with self.database.session() as session:
            model_id = model_id_of(session, facts)
            machine_id = machine_id_of(session, hardware)
            row = session.scalar(select(StudyRow).where(StudyRow.name == name))
            if row is None:
                row = StudyRow(
                    name=name,
                    model_id=model_id,
                    machine_id=machine_id,
                    workload=workload.to_json(),
                    workload_hash=workload_hash(workload),
                    search_digest=digest,
                )
                session.add(row)
            else:
                check_same_question(session, row, model_id, machine_id, digest, workload)
            row.definition = definition_json(definition)
            row.state, row.progress = "RUNNING", None
            row.parent_pid, row.parent_host = os.getpid(), socket.gethostname()
            row.updated = now()
        return self.study(name)

    def set_study_state(self, study_id: int, state: StudyState) -> None:
        """Writes the state of the study."""
        with self.database.session() as session:
            session.execute(
                update(StudyRow)
                .where(StudyRow.id == study_id)
                .values(
                    state=state, updated=now(), parent_pid=None, parent_host=None, progress=None
                )
            )

    def interrupt_running(
        self, study_id: int, gone: Callable[[str | None], bool]
    ) -> tuple[int, ...]:
        """Marks RUNNING trials of workers that are gone as INTERRUPTED; returns their numbers."""
        with self.database.session() as session:
            rows = session.scalars(
                select(TrialRow).where(TrialRow.study_id == study_id, TrialRow.state == "RUNNING")
            ).all()
            lost = [row for row in rows if gone(row.worker)]
            for row in lost:
                row.state, row.failure, row.finished = "INTERRUPTED", "interrupted", now()
                row.reason = "the study's process ended while this trial ran"
            return tuple(row.number for row in lost)

    def add_spent(self, study_id: int, stage: str, seconds: float) -> None:
        """Adds seconds to a stage of the study."""
        with self.database.session() as session:
            row = session.get_one(StudyRow, study_id)
            before = row.spent or {}
            row.spent = {**before, stage: before.get(stage, 0.0) + seconds}

    def keep_estimate(self, study_id: int, seconds: float) -> None:
        """Stores the expected duration of the study; the first estimate is kept."""
        with self.database.session() as session:
            row = session.get_one(StudyRow, study_id)
            row.estimate_s = seconds if row.estimate_s is None else row.estimate_s

    def keep_progress(self, study_id: int, activity: Mapping[str, Any]) -> None:
        """Stores what a running study does now."""
        running = StudyRow.id == study_id, StudyRow.state == "RUNNING"
        with self.database.session() as session:
            session.execute(update(StudyRow).where(*running).values(progress=dict(activity)))

    def interrupt_trial(self, study_id: int, number: int, reason: str) -> None:
        """Marks a RUNNING trial whose worker is gone as INTERRUPTED."""
        with self.database.session() as session:
            session.execute(
                update(TrialRow)
                .where(
                    TrialRow.study_id == study_id,
                    TrialRow.number == number,
                    TrialRow.state == "RUNNING",
                )
                .values(state="INTERRUPTED", failure="interrupted", reason=reason, finished=now())
            )

    def start_trial(
        self,
        study_id: int,
        number: int,
        params: Mapping[str, Any],
        worker: str | None = None,
        origin: str | None = None,
    ) -> int:
        """Adds a RUNNING trial; returns its id."""
        with self.database.session() as session:
            row = TrialRow(
                study_id=study_id,
                number=number,
                state="RUNNING",
                params=dict(params),
                worker=worker,
                origin=origin,
            )
            session.add(row)
            session.flush()
            return row.id

    def finish_trial(self, trial_id: int, outcome: TrialOutcome) -> None:
        """Writes the outcome of a trial, and updates the study's time stamp."""
        with self.database.session() as session:
            row = session.get_one(TrialRow, trial_id)
            row.state, row.failure, row.reason = outcome.state, outcome.failure, outcome.reason
            row.scores = dict(outcome.scores or {})
            row.violations = dict(outcome.violations or {})
            row.memory = dict(outcome.memory or {})
            row.configuration_id = outcome.configuration_id
            row.quality_id, row.reference_id = outcome.quality_id, outcome.reference_id
            row.bounds = dict(outcome.bounds) if outcome.bounds else None
            row.predicted = dict(outcome.predicted) if outcome.predicted else None
            row.engine_s = outcome.engine_s
            row.finished = now()
            session.get_one(StudyRow, row.study_id).updated = now()

    def keep_configuration(
        self, model_id: int, work_hash: str, config: EngineConfig, plan: MemoryPlan
    ) -> int:
        """Finds or adds the row of this resolved config under this model and workload; returns its
        id."""
        text = f"{model_id} {work_hash} {config.digest()}"
        digest = short_digest(text)
        with self.database.session() as session:
            row = ConfigurationRow(
                hash=digest,
                model_id=model_id,
                workload_hash=work_hash,
                config=config.to_dict(),
                memory=plan.to_json(),
            )
            same = select(ConfigurationRow).where(ConfigurationRow.hash == digest)
            return kept_once(session, same, row)[0].id

    def known_infeasible(self, study_id: int, configuration_id: int) -> TrialOutcome | None:
        """How an earlier trial of this configuration showed that it does not fit, if one did."""
        with self.database.session() as session:
            row = session.scalar(
                select(TrialRow).where(
                    TrialRow.study_id == study_id,
                    TrialRow.configuration_id == configuration_id,
                    TrialRow.state == "INFEASIBLE",
                )
            )
            if row is None:
                return None
            return TrialOutcome(
                "INFEASIBLE",
                row.failure,
                f"as trial {row.number}: {row.reason}",
                violations=row.violations,
                memory=row.memory,
                configuration_id=configuration_id,
            )

    def add_samples(
        self,
        configuration_id: int,
        machine_id: int,
        trial_id: int | None,
        report: Report,
        role: Role = "search",
    ) -> None:
        """Adds every sample of a report with its sentinel and expert counts; repeat numbers
        continue."""
        with self.database.session() as session:
            # in PostgreSQL another worker may be adding samples of it too, and would count alike
            session.get_one(ConfigurationRow, configuration_id, with_for_update=True)
            sentinel = SentinelRow(
                machine_id=machine_id,
                compute_ms=report.sentinel.compute_ms,
                read_ms=report.sentinel.read_ms,
            )
            session.add(sentinel)
            session.flush()
            last = session.scalar(
                select(func.max(SampleRow.repeat)).where(
                    SampleRow.configuration_id == configuration_id
                )
            )
            lowest = min((sample.repeat for sample in report.samples), default=0)
            first = (0 if last is None else last + 1) - lowest
            session.add_all(
                SampleRow(
                    configuration_id=configuration_id,
                    machine_id=machine_id,
                    trial_id=trial_id,
                    sentinel_id=sentinel.id,
                    repeat=first + sample.repeat,
                    role=role,
                    metric=sample.metric,
                    value=sample.value,
                    unit=sample.unit,
                )
                for sample in report.samples
            )
            if report.experts is not None:
                session.add(
                    ExpertUseRow(
                        configuration_id=configuration_id,
                        machine_id=machine_id,
                        counts=report.experts.to_json(),
                    )
                )

    def pool(self, configuration_id: int, machine_id: int) -> Pool:
        """All samples of one configuration; empty when there are none."""
        with self.database.session() as session:
            found = pools(session, [configuration_id], machine_id)
        return found.get(configuration_id, Pool({}, {}, {}))

    def quality(self, model_id: int, key: str) -> QualityResult | None:
        """The quality result of this key; None if it was not evaluated yet."""
        with self.database.session() as session:
            row = session.scalar(
                select(QualityRow).where(QualityRow.model_id == model_id, QualityRow.key == key)
            )
            return None if row is None else quality_result(row)

    def keep_quality(
        self, model_id: int, key: str, depends_on: Mapping[str, Any], report: QualityReport
    ) -> QualityResult:
        """Writes a new quality result and its items; if another worker was faster, its result is
        kept."""
        with self.database.session() as session:
            kept = report.to_json(with_items=False)
            row = QualityRow(model_id=model_id, key=key, depends_on=dict(depends_on), report=kept)
            same = select(QualityRow).where(QualityRow.model_id == model_id, QualityRow.key == key)
            row, new = kept_once(session, same, row)
            if not new:
                return quality_result(row)
            session.add_all(
                QualityItemsRow(
                    quality_id=row.id,
                    task=one.task,
                    metric=one.metric,
                    docs=list(one.docs),
                    values=list(one.values),
                )
                for one in report.items
            )
            return quality_result(row)

    def with_items(self, ids: Iterable[int]) -> dict[int, QualityReport]:
        """Quality results by id, including their items."""
        with self.database.session() as session:
            return reports_with_items(session, set(ids))

    def add_export(self, study_id: int, trial_id: int, pick: str, path: str, content: str) -> None:
        """Records an exported deployment YAML."""
        with self.database.session() as session:
            session.add(
                ExportRow(
                    study_id=study_id, trial_id=trial_id, pick=pick, path=path, content=content
                )
            )

    def add_telemetry(self, deployment: str, payload: Mapping[str, Any]) -> None:
        """Stores a deployment's telemetry for one time window."""
        with self.database.session() as session:
            session.add(TelemetryRow(deployment=deployment, payload=dict(payload)))

    def telemetry(self, last: int = 100) -> tuple[TelemetrySnapshot, ...]:
        """The newest telemetry windows of all deployments, oldest first."""
        with self.database.session() as session:
            rows = session.scalars(
                select(TelemetryRow).order_by(TelemetryRow.id.desc()).limit(last)
            ).all()
            return tuple(
                TelemetrySnapshot(row.deployment, row.payload, row.created)
                for row in reversed(rows)
            )

    def study_names(self) -> tuple[str, ...]:
        """The names of all studies, oldest first."""
        with self.database.session() as session:
            return tuple(session.scalars(select(StudyRow.name).order_by(StudyRow.id)))

    def studies(self) -> tuple[StudySnapshot, ...]:
        """All studies, oldest first."""
        with self.database.session() as session:
            rows = session.scalars(select(StudyRow).order_by(StudyRow.id)).all()
            return tuple(study_snapshot(session, row) for row in rows)

    def study(self, name: str) -> StudySnapshot:
        """The study of this name; raises MissingStudyError, listing the others, if there is
        none."""
        with self.database.session() as session:
            row = session.scalar(select(StudyRow).where(StudyRow.name == name))
            if row is not None:
                return study_snapshot(session, row)
        names = self.study_names()
        known = f"there are: {', '.join(names)}" if names else "there are none yet"
        raise MissingStudyError(f"there is no study '{name}'; {known}")

    def trials(
        self, study: StudySnapshot, numbers: Collection[int] | None = None
    ) -> tuple[TrialSnapshot, ...]:
        """Trials of a study in order, with pooled metrics. numbers: only these, None: all."""
        wanted = [TrialRow.study_id == study.id]
        if numbers is not None:
            wanted.append(TrialRow.number.in_(numbers))
        with self.database.session() as session:
            rows = session.scalars(select(TrialRow).where(*wanted).order_by(TrialRow.number)).all()
            ids = select(TrialRow.configuration_id).where(*wanted)
            pooled = pools(session, ids, study.machine_id)
            configs = {
                row.id: row.config
                for row in session.scalars(
                    select(ConfigurationRow).where(ConfigurationRow.id.in_(ids))
                )
            }
            quality = {
                row.id: quality_report(row)
                for row in session.scalars(
                    select(QualityRow).where(QualityRow.model_id == study.model_id)
                )
            }
            return tuple(trial_snapshot(row, pooled, configs, quality) for row in rows)
