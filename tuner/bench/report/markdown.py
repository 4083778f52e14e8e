"""Renders tables as one self-contained Markdown text."""

from __future__ import annotations

from collections.abc import Sequence

from tuner.bench.report.tables import Table


def render_markdown(tables: Sequence[Table], provenance: Sequence[str]) -> str:
    """Renders a heading, the tables and their provenance."""
    lines = ["# Bench", ""]
    for table in tables:
        lines += [f"## {table.title}", ""]
        lines += [table.note, ""] if table.note else []
        lines += [_line([column.removeprefix("#") for column in table.columns])]
        lines += [_line(["---:" if c.startswith("#") else "---" for c in table.columns])]
        lines += [*(_line(row) for row in table.rows), ""]
    lines += ["## Provenance", "", *(f"- {line}" for line in provenance), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    plain = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(plain)} |"
