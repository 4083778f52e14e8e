"""Turns rows into frozen snapshots for the repository's queries. Reads, never writes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from engine.contract.report import Metric, QualityReport, TaskItems
from engine.contract.statistics import mean_metric
from tuner.statistics import confirmed_interval
from tuner.store.contents import (
    check_config,
    check_figures,
    check_items,
    check_machine,
    check_study,
    check_trial,
    quality_report,
    readable,
)
from tuner.store.snapshots import QualityResult, StudySnapshot, TrialSnapshot, figures_of
from tuner.store.tables import (
    MachineRow,
    ModelRow,
    QualityItemsRow,
    QualityRow,
    SampleRow,
    SentinelRow,
    StudyRow,
    TrialRow,
)

ConfigurationIds = Collection[int] | Select[int | None]


@dataclass(frozen=True)
class Pool:
    """All samples of one configuration on one machine: values by metric, the confirming ones also
    separately, and the sentinels' means."""

    values: Mapping[str, tuple[float, ...]]
    units: Mapping[str, str]
    sentinel: Mapping[str, float]
    confirming: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def metrics(self) -> dict[str, Metric]:
        """The mean and interval of each metric."""
        return {name: mean_metric(values, self.units[name]) for name, values in self.values.items()}

    def confirmed(self) -> dict[str, Metric]:
        """The mean of each metric in fresh processes, {} without any. Its interval takes the spread
        of all samples around the mean of their role, since few of them confirm."""
        return {
            name: confirmed_interval(values, self.values[name], self.units[name])
            for name, values in self.confirming.items()
        }


def study_snapshot(session: Session, row: StudyRow) -> StudySnapshot:
    """Builds the snapshot of a study with its model, machine and counts."""
    model = session.get_one(ModelRow, row.model_id)
    machine = session.get_one(MachineRow, row.machine_id)
    with readable(f"study '{row.name}'"):
        check_machine(machine.description)
        check_study(row.definition, row.workload, model.facts, row.progress, row.spent)
    counts = session.execute(
        select(TrialRow.state, func.count())
        .where(TrialRow.study_id == row.id)
        .group_by(TrialRow.state)
    )
    by_state = {str(state): int(count) for state, count in counts}
    return StudySnapshot(
        id=row.id,
        name=row.name,
        state=row.state,  # type: ignore[arg-type]  # written by this class only
        model=str(row.definition["model"]),
        model_id=model.id,
        model_fingerprint=model.fingerprint,
        machine_id=machine.id,
        machine=machine.description,
        facts=model.facts,
        definition=row.definition,
        search_digest=row.search_digest,
        workload=row.workload,
        workload_hash=row.workload_hash,
        trials=sum(by_state.values()),
        trials_by_state=by_state,
        parent_pid=row.parent_pid,
        spent=row.spent or {},
        estimate_s=row.estimate_s,
        progress=row.progress,
        created=row.created,
        updated=row.updated,
    )


def pools(session: Session, ids: ConfigurationIds, machine_id: int) -> dict[int, Pool]:
    """All samples of these configurations on one machine, by configuration; in two queries, however
    many there are. ids: numbers, or a query for them."""
    ours = SampleRow.configuration_id.in_(ids), SampleRow.machine_id == machine_id
    query = select(
        SampleRow.configuration_id,
        SampleRow.metric,
        SampleRow.value,
        SampleRow.unit,
        SampleRow.role,
    )
    values: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    confirming: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    units: dict[int, dict[str, str]] = defaultdict(dict)
    rows = session.execute(query.where(*ours).order_by(SampleRow.id)).all()
    check_figures("sample", rows, 2)
    for configuration_id, metric, value, unit, role in rows:
        values[configuration_id][metric].append(value)
        units[configuration_id][metric] = unit
        if role == "confirm":
            confirming[configuration_id][metric].append(value)
    sentinels = _mean_sentinels(session, *ours)
    return {
        configuration_id: Pool(
            {name: tuple(found) for name, found in metrics.items()},
            units[configuration_id],
            sentinels[configuration_id],
            {name: tuple(found) for name, found in confirming[configuration_id].items()},
        )
        for configuration_id, metrics in values.items()
    }


def _mean_sentinels(session: Session, *ours: ColumnElement[bool]) -> dict[int, dict[str, float]]:
    """Means of the sentinels beside each configuration's samples, each sentinel once."""
    each = (
        select(SampleRow.configuration_id, SampleRow.sentinel_id).where(*ours).distinct().subquery()
    )
    query = (
        select(
            each.c.configuration_id,
            func.avg(SentinelRow.compute_ms),
            func.avg(SentinelRow.read_ms),
        )
        .join(SentinelRow, SentinelRow.id == each.c.sentinel_id)
        .group_by(each.c.configuration_id)
    )
    rows = session.execute(query).all()
    check_figures("sentinel", rows, 1, 2)
    return {
        configuration_id: {"compute_ms": float(compute_ms), "read_ms": float(read_ms)}
        for configuration_id, compute_ms, read_ms in rows
    }


def quality_result(row: QualityRow) -> QualityResult:
    """Builds the value of a quality_result row."""
    return QualityResult(row.id, row.key, quality_report(row))


def reports_with_items(session: Session, ids: set[int]) -> dict[int, QualityReport]:
    """The complete reports of these quality results."""
    items: dict[int, list[TaskItems]] = defaultdict(list)
    query = select(QualityItemsRow).where(QualityItemsRow.quality_id.in_(ids))
    for row in session.scalars(query.order_by(QualityItemsRow.id)):
        with readable(f"items of quality result {row.quality_id}"):
            check_items(row.docs, row.values)
            if len(row.docs) != len(row.values):
                raise ValueError("there are not as many values as items")
        items[row.quality_id].append(
            TaskItems(row.task, row.metric, tuple(row.docs), tuple(row.values))
        )
    return {
        row.id: replace(quality_report(row), items=tuple(items[row.id]))
        for row in session.scalars(select(QualityRow).where(QualityRow.id.in_(ids)))
    }


def trial_snapshot(
    row: TrialRow,
    pools: Mapping[int, Pool],
    configs: Mapping[int, dict[str, Any]],
    quality: Mapping[int, QualityReport],
) -> TrialSnapshot:
    """Builds the snapshot of a trial with its configuration's pooled metrics."""
    with readable(f"trial {row.number}"):
        check_trial(row)
        if (config := configs.get(row.configuration_id or 0)) is not None:
            check_config(config)
    pool = pools.get(row.configuration_id or 0)
    metrics = pool.metrics() if pool else {}
    confirmed = pool.confirmed() if pool else {}
    figures = figures_of(metrics, confirmed)
    scores = dict(row.scores)
    scores.update({name: figures[name].value for name in scores if name in figures})
    return TrialSnapshot(
        id=row.id,
        number=row.number,
        state=row.state,  # type: ignore[arg-type]  # written by Store only
        failure=row.failure,
        reason=row.reason,
        params=row.params,
        scores=scores,
        violations=row.violations,
        memory=row.memory,
        configuration_id=row.configuration_id,
        config=config,
        metrics=metrics,
        sentinel=pool.sentinel if pool else None,
        quality=quality.get(row.quality_id or 0),
        quality_id=row.quality_id,
        reference_id=row.reference_id,
        confirmed=confirmed,
        bounds=row.bounds or {},
        predicted=row.predicted or {},
        engine_s=row.engine_s,
        origin=row.origin,
        worker=row.worker,
        started=row.started,
        finished=row.finished,
    )
