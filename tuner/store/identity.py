"""Finds or creates rows of models and machines; checks that a study's definition is unchanged."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from engine.contract.requests import Workload
from engine.facts.machine import Hardware
from engine.facts.model import ModelFacts
from tuner.definition.workload import workload_hash
from tuner.errors import StudyError
from tuner.store.once import kept_once
from tuner.store.tables import MachineRow, ModelRow, StudyRow


def model_id_of(session: Session, facts: ModelFacts) -> int:
    row = ModelRow(
        fingerprint=facts.fingerprint,
        name=facts.id,
        revision=facts.revision,
        family=facts.family,
        facts=facts.to_json(),
    )
    same = select(ModelRow).where(ModelRow.fingerprint == facts.fingerprint)
    row, _ = kept_once(session, same, row)
    row.facts = facts.to_json()
    return row.id


def machine_id_of(session: Session, hardware: Hardware) -> int:
    row = MachineRow(fingerprint=hardware.fingerprint, description=hardware.to_json())
    same = select(MachineRow).where(MachineRow.fingerprint == hardware.fingerprint)
    row, _ = kept_once(session, same, row)
    row.description = hardware.to_json()
    return row.id


def check_same_question(
    session: Session,
    row: StudyRow,
    model_id: int,
    machine_id: int,
    digest: str,
    workload: Workload,
) -> None:
    rename = "give this one another name with --study"
    if row.model_id != model_id:
        other = session.get_one(ModelRow, row.model_id)
        raise StudyError(f"study '{row.name}' is of another model ({other.name}): {rename}")
    if row.machine_id != machine_id:
        raise StudyError(f"study '{row.name}' was measured on another machine: {rename}")
    if row.workload_hash != workload_hash(workload):
        raise StudyError(f"study '{row.name}' was measured with another workload: {rename}")
    if row.search_digest != digest:
        raise asks_otherwise(row.name)


def asks_otherwise(name: str) -> StudyError:
    """The error for a study whose definition is not the one that it began with."""
    return StudyError(
        f"study '{name}' asked something else (budget, space, objectives, limits, tasks or repeats "
        "differ): give this one another name with --study, or repeat its options to continue it"
    )
