"""Optuna's tables against ours: the same trials under the same numbers, with the same outcomes.

Ours are the record. A kill between the two writes leaves Optuna behind (RUNNING, then FAIL), never
ahead; so a trial that Optuna has completed must have ended in our table too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tuner.store.integrity.finding import Finding, shortened
from tuner.store.tables import StudyRow, TrialRow

ANEW = "give the study another name with --study and run it again: its search may go astray"
TABLES = ("studies", "trials", "trial_params", "trial_values", "trial_heartbeats")
NAME_INDEX = "ix_studies_study_name"
AGAIN = "run the study again"
# What Optuna may say of a trial of ours; RUNNING and FAIL also after a kill between the two writes.
BEHIND = {"RUNNING", "FAIL"}
ALLOWED = {
    "RUNNING": BEHIND,
    "COMPLETE": {"COMPLETE", *BEHIND},
    "PRUNED": {"COMPLETE", *BEHIND},
    "INFEASIBLE": {"COMPLETE", "PRUNED", *BEHIND},
    "FAILED": BEHIND,
    "INTERRUPTED": BEHIND,
}


@dataclass(frozen=True)
class _Theirs:
    """One trial as Optuna holds it."""

    id: int
    state: str


def findings(session: Session) -> Iterator[Finding]:
    """Where Optuna's tables and ours disagree; none before Optuna made its tables."""
    there = set(sa.inspect(session.connection()).get_table_names())
    if missing := [name for name in TABLES if name not in there]:
        begun = session.scalar(sa.select(sa.func.count()).select_from(TrialRow))
        told = f"Optuna's tables are missing: {', '.join(missing)}"
        if begun:
            yield Finding("optuna", told, ANEW)
        elif len(missing) < len(TABLES):  # the process that made them ended meanwhile
            yield Finding("optuna", told, AGAIN, mended_by_next_start=True)
        return
    yield from shortened(_doubled(session), "optuna", ANEW)
    indexes = {index["name"] for index in sa.inspect(session.connection()).get_indexes("studies")}
    if NAME_INDEX not in indexes:
        told = "Optuna's index of the names of studies is missing"
        yield Finding("optuna", told, AGAIN, mended_by_next_start=True)
    yield from shortened(_dangling(session), "optuna", ANEW)
    for study in session.scalars(sa.select(StudyRow).order_by(StudyRow.id)):
        yield from shortened(_disagreements(session, study), "optuna", ANEW)


def _doubled(session: Session) -> Iterator[str]:
    query = "SELECT study_name FROM studies GROUP BY study_name HAVING count(*) > 1"
    for name in session.scalars(sa.text(query)):
        yield f"Optuna holds the study '{name}' more than once"


def _dangling(session: Session) -> Iterator[str]:
    for table in ("trial_params", "trial_values", "trial_heartbeats"):
        query = f"SELECT trial_id FROM {table} WHERE trial_id NOT IN (SELECT trial_id FROM trials)"
        for trial in session.scalars(sa.text(query)):
            yield f"Optuna's table '{table}' names trial {trial}, which is not there"


def _disagreements(session: Session, study: StudyRow) -> Iterator[str]:
    ours = session.scalars(
        sa.select(TrialRow).where(TrialRow.study_id == study.id).order_by(TrialRow.number)
    ).all()
    query = (
        "SELECT t.number, t.trial_id, t.state FROM trials t JOIN studies s USING (study_id) "
        "WHERE s.study_name = :name ORDER BY t.number"
    )
    rows = session.execute(sa.text(query), {"name": study.name}).all()
    theirs = {number: _Theirs(trial_id, str(state)) for number, trial_id, state in rows}
    where = f"of study '{study.name}'"
    if any(type(number) is not int for number in theirs):
        yield f"Optuna's numbers of the trials {where} are no whole numbers"
        return
    if len(theirs) != len(rows):
        yield f"Optuna holds a trial {where} twice"
    if sorted(theirs) != list(range(len(theirs))):
        yield f"Optuna's numbers of the trials {where} have a gap"
    params = _params(session, study.name)
    for row in ours:
        their = theirs.get(row.number)
        if their is None:
            yield f"Optuna does not know trial {row.number} {where}"
        elif their.state not in ALLOWED.get(row.state, {their.state}):
            yield f"trial {row.number} {where} is {row.state}, and for Optuna {their.state}"
        elif not _same(row.params, params.get(their.id, {})):
            yield f"trial {row.number} {where} and Optuna's have different parameters"
    known = {row.number for row in ours}
    for number, their in theirs.items():
        if number not in known and their.state in ("COMPLETE", "PRUNED"):
            yield f"trial {number} {where} has ended for Optuna, and is missing in our table"


def _params(session: Session, name: str) -> dict[int, dict[str, Any]]:
    query = (
        "SELECT p.trial_id, p.param_name, p.param_value, p.distribution_json FROM trial_params p "
        "JOIN trials t ON t.trial_id = p.trial_id JOIN studies s ON s.study_id = t.study_id "
        "WHERE s.study_name = :name"
    )
    found: dict[int, dict[str, Any]] = {}
    for trial, parameter, value, distribution in session.execute(sa.text(query), {"name": name}):
        found.setdefault(trial, {})[parameter] = _chosen(value, distribution)
    return found


def _chosen(value: Any, distribution: str) -> Any:
    """The choice that Optuna stores as its index; None if there is no such choice."""
    try:
        choices = json.loads(distribution)["attributes"]["choices"]
        return choices[int(value)] if 0 <= value < len(choices) else None
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Equal names and values; a kill may have left Optuna without any."""
    if not theirs:
        return not ours
    return ours.keys() == theirs.keys() and all(
        value == theirs[name] or _close(value, theirs[name]) for name, value in ours.items()
    )


def _close(one: Any, other: Any) -> bool:
    both = isinstance(one, float) and isinstance(other, float)
    return both and math.isclose(one, other)
