"""Checks a whole store: structure first, then rows, trials, measurements and Optuna's tables.

In: a storage URL. Out: StoreCheck, whose findings are empty for a healthy store. A store whose
structure is damaged, or whose rows cannot be read, is not examined further.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from tuner.errors import OldStoreError, StoreError
from tuner.store.database import open_read_only
from tuner.store.integrity import (
    contents,
    files,
    measurements,
    optuna_tables,
    structure,
    trials,
)
from tuner.store.integrity.finding import Finding
from tuner.store.tables import SampleRow, StudyRow, TrialRow
from tuner.store.url import shown_url

COUNTED = {"studies": StudyRow, "trials": TrialRow, "samples": SampleRow}
COPY = "restore a copy, or name another with --storage and run the study again"


@dataclass(frozen=True)
class StoreCheck:
    """What was found in a store. counts: studies, trials and samples examined."""

    url: str
    findings: tuple[Finding, ...]
    counts: dict[str, int]

    @property
    def healthy(self) -> bool:
        """Whether every invariant holds."""
        return not self.findings

    @property
    def damage(self) -> tuple[Finding, ...]:
        """The findings that the next start does not mend."""
        return tuple(one for one in self.findings if not one.mended_by_next_start)

    def to_json(self) -> dict[str, Any]:
        """The key `store` of `tune doctor --store --json`."""
        return {
            "url": self.url,
            "healthy": self.healthy,
            "counts": self.counts,
            "findings": [one.to_json() for one in self.findings],
        }


def check_store(url: str) -> StoreCheck:
    """Checks every invariant in one read snapshot. Raises UsageError for a URL that names no
    store."""
    try:
        database = open_read_only(url)
        with (
            contextlib.closing(database),
            database.read_snapshot() as snapshot,
            snapshot.session() as session,
        ):
            return _checked(shown_url(url), session)
    except StoreError as error:
        return StoreCheck(shown_url(url), (_unopened(error),), {})


def _checked(url: str, session: Session) -> StoreCheck:
    found = list(structure.findings(session))
    counts: dict[str, int] = {}
    if not found:
        counts = {
            name: session.scalar(select(func.count()).select_from(row)) or 0
            for name, row in COUNTED.items()
        }
        found += structure.references(session)
        unread = list(contents.findings(session))
        found += unread
        for part in () if unread else (trials, measurements, optuna_tables, files):
            found += part.findings(session)
    return StoreCheck(url, tuple(found), counts)


def _unopened(error: StoreError) -> Finding:
    sentence, _, remedy = str(error).partition(": ")
    mends = isinstance(error, OldStoreError)
    return Finding("opening", sentence, remedy or COPY, mended_by_next_start=mends)
