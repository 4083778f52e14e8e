"""Rows that several workers write at the same moment, of which one is kept."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tuner.store.tables import Base

Row = TypeVar("Row", bound=Base)


def kept_once(session: Session, same: Select[Row], row: Row) -> tuple[Row, bool]:
    """What `same` finds, else `row`, added and with its id; and whether it is new.

    `same` asks for a unique key: where another process adds it in between, its row is found.
    """
    found = session.scalar(same)
    if found is not None:
        return found, False
    try:
        with session.begin_nested():
            session.add(row)
            session.flush()
    except IntegrityError:
        return session.scalars(same).one(), False
    return row, True
