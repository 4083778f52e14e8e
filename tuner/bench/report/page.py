"""Renders tables and figures as one self-contained HTML file; plotly.js is embedded once."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from tuner.bench.report.tables import Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --line: #b0b0b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --line: #5a5a5a; }
}
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem;
  color: var(--ink); background: var(--paper); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; }
th.number, td.number { text-align: right; white-space: nowrap; }
td:first-child { white-space: nowrap; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); }
.xtick text, .ytick text, .xtitle, .ytitle, .legendtext { fill: var(--ink) !important; }
"""


def render_page(
    tables: Sequence[Table], provenance: Sequence[str], figures: Sequence[tuple[str, Any]]
) -> str:
    """Renders the page. figures: (title, Plotly figure)."""
    parts = [_table(table) for table in tables[:1]]
    parts += [_figure(number, title, figure) for number, (title, figure) in enumerate(figures)]
    parts += [_table(table) for table in tables[1:]]
    listed = "\n".join(f"<li>{html.escape(line)}</li>" for line in provenance)
    body = "\n".join(parts)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>expertune bench</title>
<style>{_STYLE}</style>
{_script() if figures else ""}</head><body>
<h1>Bench</h1>
{body}
<h2>Provenance</h2>
<ul>
{listed}
</ul>
</body></html>
"""


def _table(table: Table) -> str:
    kinds = [' class="number"' if column.startswith("#") else "" for column in table.columns]
    head = _cells("th", kinds, [column.removeprefix("#") for column in table.columns])
    rows = "\n".join(f"<tr>{_cells('td', kinds, row)}</tr>" for row in table.rows)
    note = f"<p>{html.escape(table.note)}</p>\n" if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>\n{note}"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cells(tag: str, kinds: Sequence[str], texts: Sequence[str]) -> str:
    return "".join(
        f"<{tag}{kind}>{html.escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True)
    )


def _figure(number: int, title: str, figure: Any) -> str:
    drawn = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{number}",
        config={"displaylogo": False, "responsive": True},
    )
    return f"<h2>{html.escape(title)}</h2>\n{drawn}"


def _script() -> str:
    from plotly.offline import get_plotlyjs  # 5 MB of text, read for a page with figures only

    return f"<script>{get_plotlyjs()}</script>\n"
