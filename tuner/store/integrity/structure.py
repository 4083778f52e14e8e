"""The database itself: its pages, tables, columns, JSON, and references between rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from tuner.errors import StoreError
from tuner.store.contents import LISTS, parse_json
from tuner.store.integrity.finding import Finding, shortened
from tuner.store.tables import Base

COPY = "restore a copy of the database, or name another with --storage"


def findings(session: Session) -> Iterator[Finding]:
    """What is wrong with pages, tables, JSON and types; where it is, no row can be read with
    trust."""
    yield from [*_pages(session), *_tables(session)] or [*_json(session)] or _types(session)


def references(session: Session) -> Iterator[Finding]:
    """Rows that belong to rows which are not there, and rows that are there twice."""
    yield from _references(session)
    yield from _doubled(session)


def _pages(session: Session) -> Iterator[Finding]:
    if session.get_bind().dialect.name != "sqlite":
        return  # the server checks its own
    told = [str(row[0]) for row in session.execute(sa.text("PRAGMA integrity_check(5)"))]
    wrong = [line for line in told if line != "ok"]
    yield from shortened((f"SQLite finds damage: {line}" for line in wrong), "pages", COPY)


def _tables(session: Session) -> Iterator[Finding]:
    inspected = sa.inspect(session.connection())
    there = set(inspected.get_table_names())
    for table in Base.metadata.sorted_tables:
        if table.name not in there:
            yield Finding("schema", f"the table '{table.name}' is missing", COPY)
            continue
        columns = {column["name"] for column in inspected.get_columns(table.name)}
        missing = ", ".join(f"'{c.name}'" for c in table.columns if c.name not in columns)
        if missing:
            yield Finding("schema", f"the table '{table.name}' lacks {missing}", COPY)


def _json(session: Session) -> Iterator[Finding]:
    if session.get_bind().dialect.name != "sqlite":
        return  # the column's type admits nothing else
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, sa.JSON):
                name, wanted = f'"{column.name}"', "array" if column.name in LISTS else "object"
                query = (
                    f'SELECT id, {name} FROM "{table.name}" WHERE {name} IS NOT NULL AND '
                    f"NOT CASE WHEN json_valid({name}) THEN json_type({name}) = '{wanted}' END"
                    " IS TRUE"
                )
                rows = session.execute(sa.text(query))
                told = (
                    f"{table.name} {key} holds no JSON in '{column.name}' that is an {wanted}"
                    for key, value in rows
                    if not _is_json(value, list if column.name in LISTS else dict)
                )
                yield from shortened(told, "json", COPY)


def _is_json(value: str | bytes, kind: type) -> bool:
    """As Python reads it: Infinity too, which SQLite does not take."""
    try:
        return isinstance(parse_json(value), kind)
    except StoreError:
        return False


def _types(session: Session) -> Iterator[Finding]:
    """Values of other types than their columns': SQLite keeps whatever is written."""
    if session.get_bind().dialect.name != "sqlite":
        return
    for table in Base.metadata.sorted_tables:
        for column in table.columns:
            kinds = ("null", *_kinds(column)) if column.nullable else _kinds(column)
            name = f'"{column.name}"'
            allowed = ", ".join(f"'{kind}'" for kind in kinds)
            query = f'SELECT rowid, typeof({name}) FROM "{table.name}"'
            rows = session.execute(sa.text(f"{query} WHERE typeof({name}) NOT IN ({allowed})"))
            told = (
                f"{table.name} {key} holds {_shown(kind)} in '{column.name}', not {kinds[-1]}"
                for key, kind in rows
            )
            yield from shortened(told, "types", COPY)


def _kinds(column: sa.Column[Any]) -> tuple[str, ...]:
    """SQLite's types of a column's values; the last is what messages say."""
    if isinstance(column.type, sa.Integer):
        return ("integer",)
    return ("integer", "real") if isinstance(column.type, sa.Float) else ("text",)


def _shown(kind: str) -> str:
    return "nothing" if kind == "null" else kind


def _references(session: Session) -> Iterator[Finding]:
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_keys:
            other = key.column.table.alias("other")
            there = sa.exists().where(other.c[key.column.name] == key.parent)
            lost = session.execute(
                sa.select(table.c.id, key.parent).where(key.parent.is_not(None), ~there)
            )
            told = (
                f"{table.name} {row_id} belongs to {key.column.table.name} {missing}, which is "
                "not there"
                for row_id, missing in lost
            )
            yield from shortened(told, "references", COPY)


def _doubled(session: Session) -> Iterator[Finding]:
    """Rows that a unique constraint or index would refuse, in case it is not there."""
    dialect = session.get_bind().dialect.name
    for table in Base.metadata.sorted_tables:
        for columns, condition in _uniques(table, dialect):
            query = sa.select(*columns).where(condition).group_by(*columns)
            names = ", ".join(column.name for column in columns)
            told = (
                f"the table '{table.name}' holds {names} {', '.join(map(str, row))} more than once"
                for row in session.execute(query.having(sa.func.count() > 1))
            )
            yield from shortened(told, "doubled", COPY)


def _uniques(
    table: sa.Table, dialect: str
) -> Iterator[tuple[list[sa.Column[Any]], sa.ColumnElement[bool]]]:
    """The columns that are unique together, and for which rows."""
    for constraint in table.constraints:
        if isinstance(constraint, sa.UniqueConstraint):
            yield list(constraint.columns), sa.true()
    for index in table.indexes:
        if index.unique:
            where = index.dialect_options[dialect]["where"]
            yield list(index.columns), sa.true() if where is None else where
