"""Prints the output of commands: one JSON document, or tables for users. Errors as one sentence."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.inputs.visible import as_one_entry, visible
from tuner.formatting import format_cell

# Whether this command has printed its document, behind which no error may stand.
PRINTED: ContextVar[bool] = ContextVar("PRINTED", default=False)
JSON_SCHEMA = "expertune-json/v1"  # a new number when a key goes or changes its meaning


def print_json(document: dict[str, Any]) -> None:
    """Prints exactly one JSON document on stdout, with its version under `schema`
    (docs/json.md); numbers that JSON lacks become null."""
    document = {"schema": JSON_SCHEMA, **document}
    # at once: in pieces, a study of thousands of trials takes a second more
    text = json.dumps(_plain(document), indent=2, default=str, allow_nan=False) + "\n"
    PRINTED.set(True)
    former = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:  # whole: half a document is none
        sys.stdout.write(text)
        sys.stdout.flush()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def print_text(text: str = "") -> None:
    """Prints one line on stdout; what a terminal would act on is escaped."""
    sys.stdout.write(f"{visible(text)}\n")


def print_made(text: str, end: str = "\n") -> None:
    """Prints on stdout what a model or an export wrote: into files and pipes exactly that, on a
    terminal with escapes for what it would act on."""
    sys.stdout.write(f"{visible(text) if sys.stdout.isatty() else text}{end}")


def print_note(text: str) -> None:
    """Prints one line on stderr; what a terminal would act on is escaped."""
    sys.stderr.write(f"{as_one_entry(text)}\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table on stdout; columns that begin with `#` are right-aligned,
    cells are text, not markup."""
    table = Table(
        title=Text(visible(title), "table.title") if title else None, title_justify="left"
    )
    for column in columns:
        table.add_column(
            Text(visible(column.removeprefix("#"))),
            justify="right" if column.startswith("#") else "left",
        )
    for row in rows:
        table.add_row(*(Text(visible(format_cell(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
