"""Inserts rows that several workers may write concurrently, keeping one of them."""

from __future__ import annotations

from typing import TypeVar

from sqlalchemy import Select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tuner.store.tables import Base

Row = TypeVar("Row", bound=Base)


def kept_once(session: Session, same: Select[Row], row: Row) -> tuple[Row, bool]:
    """Returns the row that `same` finds, else adds `row`, with its id; and whether it is new.

    `same` must select by a unique key: if another process adds the row in between, that row is
    found.
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
