"""A bench document as a table in Markdown or HTML."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from engine.report import Metric
from tuner.cli.output import format_metric
from tuner.export import write_atomically

COLUMNS = ("output_tps", "decode_tps", "tpot_ms", "ttft_ms", "expert_hit_rate", "resident_share",
           "stall_ms_per_token")  # fmt: skip


def write_report(path: Path, document: dict[str, Any]) -> None:
    """Write the rows and where they come from; the suffix says which format."""
    header, rows, notes = _cells(document)
    text = _html(header, rows, notes) if path.suffix == ".html" else _markdown(header, rows, notes)
    write_atomically(path, text)


def _cells(document: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    present = [n for n in COLUMNS if any(n in row["metrics"] for row in document["rows"])]
    units = {
        name: row["metrics"][name]["unit"]
        for name in present
        for row in document["rows"]
        if name in row["metrics"]
    }
    header = ["row", *(f"{name} ({units[name]})" for name in present), "output_tps to the first"]
    rows = []
    for row in document["rows"]:
        metrics = {name: Metric(**value) for name, value in row["metrics"].items()}
        ratio = row["ratio_to_first"].get("output_tps")
        last = f"x {format_metric(Metric(**ratio))}" if ratio else row["error"] or "-"
        rows.append([row["name"], *(format_metric(metrics.get(n)) for n in present), last])
    provenance, machine = document["provenance"], document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in provenance["versions"].items())
    notes = [
        "Means with 95 % intervals over interleaved rounds.",
        f"Command: {' '.join(provenance['command'])}",
        f"Workload: {provenance['workload']} ({provenance['workload_hash']}), "
        f"{provenance['sequences']} sequences of {provenance['prompt_tokens']} + "
        f"{provenance['output_tokens']} tokens, {provenance['repeats']} rounds, "
        f"seed {provenance['seed']}",
        f"Machine: {machine['cpu']}, {machine['threads']} threads, "
        f"{machine['ram_bytes'] / 1e9:.0f} GB, {machine['system']} {machine['kernel']}",
        f"Versions: {versions}; commit {provenance['commit'] or 'unknown'}; "
        f"{provenance['created']}",
    ]
    return header, rows, notes


def _markdown(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    lines = ["# Bench", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    lines += [_line(row) for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html(header: list[str], rows: list[list[str]], notes: list[str]) -> str:
    def cells(tag: str, texts: list[str]) -> str:
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    listed = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>expertune bench</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ border: 1px solid #999; padding: .3rem .6rem; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
</style></head><body>
<h1>Bench</h1>
<table><thead><tr>{cells("th", header)}</tr></thead>
<tbody>
{body}
</tbody></table>
<ul>
{listed}
</ul>
</body></html>
"""
