"""Writes a bench document to a Markdown or HTML file, by its suffix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuner.bench.report.markdown import render_markdown
from tuner.bench.report.tables import provenance_lines, tables_of
from tuner.deployment.export import write_atomically

SUFFIXES = (".md", ".html")


def write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the whole document. Raises StoreError if the file cannot be written."""
    tables, provenance = tables_of(document), provenance_lines(document)
    if path.suffix == ".html":
        from tuner.bench.report.charts import figures_of  # plotly is slow to import, and Markdown
        from tuner.bench.report.page import render_page  # needs none

        text = render_page(tables, provenance, figures_of(document))
    else:
        text = render_markdown(tables, provenance)
    write_atomically(path, text)
