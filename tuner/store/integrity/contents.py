"""What rows hold, read as every command reads it: definitions, figures, reports, expert counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from tuner.errors import StoreError
from tuner.store.contents import (
    TRY,
    check_config,
    check_items,
    check_study,
    check_trial,
    expert_use,
    quality_report,
    readable,
)
from tuner.store.integrity.finding import Finding, shortened
from tuner.store.integrity.structure import COPY
from tuner.store.tables import (
    ConfigurationRow,
    ExpertUseRow,
    ModelRow,
    QualityItemsRow,
    QualityRow,
    StudyRow,
    TrialRow,
)

Row = TypeVar("Row")


def findings(session: Session) -> Iterator[Finding]:
    """The rows that no command can read."""

    def study(row: StudyRow) -> None:
        model = session.get(ModelRow, row.model_id)  # None: a finding of the references
        if model is not None:
            with readable(f"study '{row.name}'"):
                check_study(row.definition, row.workload, model.facts, row.progress, row.spent)

    for told in (
        _unread(session.scalars(select(StudyRow).order_by(StudyRow.id)), study),
        _unread(session.scalars(select(TrialRow).order_by(TrialRow.id)), _trial),
        _unread(session.scalars(select(ConfigurationRow)), _configuration),
        _unread(session.scalars(select(QualityRow)), quality_report),
        _unread(session.scalars(select(QualityItemsRow)), _items),
        _unread(session.scalars(select(ExpertUseRow)), lambda row: expert_use(row.counts)),
    ):
        yield from shortened(told, "contents", COPY)


def _unread(rows: Iterable[Row], read: Callable[[Row], object]) -> Iterator[str]:
    for row in rows:
        try:
            read(row)
        except StoreError as error:
            yield str(error).removesuffix(f": {TRY}")


def _trial(row: TrialRow) -> None:
    with readable(f"trial {row.number} of study {row.study_id}"):
        check_trial(row)


def _configuration(row: ConfigurationRow) -> None:
    with readable(f"configuration {row.id}"):
        check_config(row.config)


def _items(row: QualityItemsRow) -> None:
    with readable(f"items of quality result {row.quality_id}"):
        check_items(row.docs, row.values)
