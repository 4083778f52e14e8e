"""All measured trials of a study as columns, so that very many can be processed at once.

In: a study and the metrics needed. Out: Points, whose means are the figures of TrialSnapshot. No
config and no trial's JSON is read in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, case, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from tuner.definition.objectives import CONSTRAINTS, SIGNS
from tuner.store.contents import LARGEST, readable
from tuner.store.snapshots import StudySnapshot
from tuner.store.tables import ConfigurationRow, SampleRow, TrialRow

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Points:
    """Every COMPLETE trial, by number; all columns are [N], NaN where nothing was measured.

    means: confirmed if there is such a repeat, else of all, by metric or objective; counts: repeats
    behind each mean, 0 where there is no mean; deviations: relative standard deviation of one
    repeat among all, NaN below two; violations:
    as the study evaluated them; budgets: device bytes that each config was resolved under, if
    requested.
    """

    numbers: Integers
    configurations: Integers
    means: Mapping[str, Floats]
    counts: Mapping[str, Integers]
    deviations: Mapping[str, Floats]
    violations: Mapping[str, Floats]
    budgets: Integers | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def best(self, name: str) -> float | None:
        """The best mean of an objective within the study's limits; None without any."""
        within = np.isfinite(self.means[name])
        for excess in self.violations.values():
            within &= excess <= 0
        if not within.any():
            return None
        sign = SIGNS[name]
        return float(sign * (sign * self.means[name][within]).max())


def study_points(
    session: Session, study: StudySnapshot, names: Sequence[str], with_budgets: bool = False
) -> Points:
    """Reads the points of a study. names: objectives, and metrics with limits."""
    table = _trials(session, study, names, with_budgets)
    numbers, configurations = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    means: dict[str, Floats] = {}
    counts: dict[str, Integers] = {}
    deviations: dict[str, Floats] = {}
    for place, name in enumerate(names, start=2):
        pooled = _pooled(session, study, name, configurations)
        counts[name] = pooled[:, 0].astype(np.int64)
        means[name] = np.where(pooled[:, 0] > 0, pooled[:, 1], table[:, place])
        deviations[name] = pooled[:, 2]
    violations = {
        name: np.nan_to_num(table[:, place])
        for place, name in enumerate(CONSTRAINTS, start=2 + len(names))
    }
    budgets = table[:, -1].astype(np.int64) if with_budgets else None
    return Points(numbers, configurations, means, counts, deviations, violations, budgets)


def _trials(
    session: Session, study: StudySnapshot, names: Sequence[str], with_budgets: bool
) -> Floats:
    """Number, configuration, scores as recorded at each trial's end, violations and, last, the
    budget."""
    columns: list[Any] = [TrialRow.number, TrialRow.configuration_id]
    columns += [TrialRow.scores[name].as_float() for name in names]
    columns += [TrialRow.violations[name].as_float() for name in CONSTRAINTS]
    if with_budgets:
        columns.append(ConfigurationRow.config["budget"]["vram_bytes"].as_integer())
    query: Select[Any] = select(*columns).where(
        TrialRow.study_id == study.id,
        TrialRow.state == "COMPLETE",
        TrialRow.configuration_id.is_not(None),
    )
    if with_budgets:
        query = query.join(ConfigurationRow, ConfigurationRow.id == TrialRow.configuration_id)
    return _table(session, query.order_by(TrialRow.number), len(columns))


def _pooled(session: Session, study: StudySnapshot, metric: str, wanted: Integers) -> Floats:
    """Count and mean of a figure, and the relative deviation of all repeats, [N, 3], for each of
    these configurations; one pass over an index, however many there are."""
    found = np.full((len(wanted), 3), (0.0, np.nan, np.nan))
    if metric == "quality":  # evaluated, not sampled
        return found
    ours = select(TrialRow.configuration_id).where(TrialRow.study_id == study.id)
    value = SampleRow.value
    confirming = case((SampleRow.role == "confirm", value))  # else NULL, which no sum counts
    query = (
        select(
            SampleRow.configuration_id,
            func.count(),
            func.avg(value),
            func.sum(value * value),
            func.count(confirming),
            func.avg(confirming),
        )
        .where(
            SampleRow.machine_id == study.machine_id,
            SampleRow.metric == metric,
            SampleRow.configuration_id.in_(ours),
        )
        .group_by(SampleRow.configuration_id)
        .order_by(SampleRow.configuration_id)
    )
    table = _table(session, query, 6)
    if not len(table) or not len(wanted):
        return found
    places = np.minimum(np.searchsorted(table[:, 0], wanted), len(table) - 1)
    known = table[places, 0] == wanted
    count, mean, squares = table[places, 1], table[places, 2], table[places, 3]
    spread = np.maximum(squares - count * mean**2, 0.0) / np.maximum(count - 1, 1)
    several = (count > 1) & (mean != 0)
    relative = np.divide(np.sqrt(spread), np.abs(mean), out=np.full(len(wanted), np.nan),
                         where=several)  # fmt: skip
    confirmed = table[places, 4] > 0
    figure = np.where(confirmed, table[places, 5], mean)
    behind = np.where(confirmed, table[places, 4], count)
    found[known] = np.column_stack([behind, figure, relative])[known]
    return found


def _table(session: Session, query: Select[Any], width: int) -> Floats:
    """The result as [N, width], NaN for NULL; read from the driver directly, since creating objects
    for 100,000 rows takes as long as reading them."""
    connection = session.connection()
    statement = query.compile(connection, compile_kwargs={"literal_binds": True})
    cursor = connection.connection.cursor()
    try:
        cursor.execute(str(statement))
        rows = cursor.fetchall()
    except connection.dialect.loaded_dbapi.Error as error:
        raise DBAPIError(str(statement), None, error) from error
    finally:
        cursor.close()
    with readable("figure"):  # SQLite gives a text as it is
        table = np.array(rows, dtype=float).reshape(len(rows), width)
        if (np.abs(table) > LARGEST).any():
            raise ValueError(f"it is larger than {LARGEST:g}")
        return table
