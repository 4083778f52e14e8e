"""Turns a bench document into titled text tables, the same for Markdown, HTML and the terminal.

In: the document. Out: tables in reading order, without empty ones. Formats only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.contract.report import Metric
from tuner.bench.report.curves import cache_curves
from tuner.bench.report.effects import EFFECTS
from tuner.formatting import format_metric

Document = Mapping[str, Any]
MEASURED = (
    "output_tps", "decode_tps", "prefill_tps", "tpot_ms", "ttft_ms", "expert_hit_rate",
    "expert_hit_rate.prefill", "oracle_hit_rate", "resident_fraction", "overlap_ratio",
    "bandwidth_efficiency", "policy_ratio", "transfer_bytes_per_token", "stall_ms_per_token",
    "kld_mean", "top1_agreement",
)  # fmt: skip
DERIVED = ("regret", "policy_fraction")
PARTS = ("compute", "transfer_wait", "disk_wait", "router", "non_expert", "policy", "other")
_MEGA = 1e6


@dataclass(frozen=True)
class Table:
    """A titled table. columns: those that begin with `#` are right-aligned; note: one paragraph."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def tables_of(document: Document) -> list[Table]:
    """All tables that have rows."""
    made = (
        measured_table(document),
        split_table(document),
        curve_table(document),
        efficiency_table(document),
        ablation_table(document),
        published_table(document),
        notes_table(document),
    )
    return [table for table in made if table.rows]


def measured_table(document: Document) -> Table:
    """Every row with its measured and derived metrics."""
    derived = {entry["row"]: entry for entry in document["derived"]}
    rows = [{**row["metrics"], **derived[row["name"]]} for row in document["rows"]]
    names = [n for n in (*MEASURED, *DERIVED) if any(n in row for row in rows)]
    cells = []
    for row, found in zip(document["rows"], rows, strict=True):
        ratio = row["ratio_to_first"].get("output_tps")
        last = f"x {_text(ratio)}" if ratio else row["error"] or "-"
        cells.append((row["name"], *(_text(found.get(name)) for name in names), last))
    heads = (f"#{name} ({_unit(rows, name)})" for name in names)
    return Table(
        "Rows",
        ("row", *heads, "#output_tps to the first"),
        tuple(cells),
        "Means with 95 % intervals over interleaved rounds.",
    )


def split_table(document: Document) -> Table:
    """The time split per token."""
    rows = []
    for row in document["rows"]:
        metrics = row["metrics"]
        parts = [metrics.get(f"time_ms_per_token.{part}") for part in PARTS]
        if any(parts):
            wall = metrics.get("wall_ms_per_token")
            rows.append((row["name"], *(_text(part) for part in parts), _text(wall)))
    columns = ("row", *(f"#{part}" for part in PARTS), "#wall")
    return Table("Time of a decoded token (ms)", columns, tuple(rows))


def curve_table(document: Document) -> Table:
    """Decoded tokens a second by cache fraction, one column per policy."""
    curves = cache_curves(document)
    fractions = sorted({point.percent for curve in curves for point in curve.points})
    rows = []
    for fraction in fractions:
        found = [
            next((p.speed for p in curve.points if p.percent == fraction), None) for curve in curves
        ]
        rows.append((f"{fraction:g} %", *(format_metric(speed) for speed in found)))
    columns = ("fraction of all expert bytes in slots", *(f"#{curve.name}" for curve in curves))
    return Table("decode_tps against cache fraction", columns, tuple(rows))


def efficiency_table(document: Document) -> Table:
    """How close rows come to the shortest time that their budget allows."""
    found = ((entry["row"], entry.get("efficiency_ratio")) for entry in document["derived"])
    rows = tuple((name, _text(ratio)) for name, ratio in found if ratio is not None)
    return Table(
        "Efficiency",
        ("row", "#efficiency_ratio"),
        rows,
        "The shortest time over the time taken: the fastest resident row at equal bits, or reading "
        "what even Belady's rule must load, whichever takes longer. 1 is the best.",
    )


def ablation_table(document: Document) -> Table:
    """The effect of each mechanism."""
    entries = document["ablation"]
    names = [name for name in EFFECTS if any(name in entry["ratios"] for entry in entries)]
    rows = tuple(
        (e["row"], e["mechanism"], *(_text(e["ratios"].get(name)) for name in names))
        for e in entries
    )
    return Table(
        "Ablation",
        ("row", "mechanism", *(f"#{name}" for name in names)),
        rows,
        "Each policy over itself without the mechanism, paired by round: a mechanism helps where "
        "rates are above 1, times and bytes below.",
    )


def published_table(document: Document) -> Table:
    """Published figures beside ours."""
    rows = []
    for entry in document["published"]:
        measured = _text(entry["measured"])
        limit = entry["limit_ratio"]
        rows.append(
            (
                entry["row"],
                f"{entry['metric']} over {entry['over']}",
                f"{entry['published']:g}",
                measured,
                "-" if limit is None else f"{limit:.3g}",
                entry["sentence"],
                entry["setting"],
            )
        )
    columns = ("row", "figure", "#published", "#measured", "#bound", "verdict", "published for")
    return Table(
        "Published beside measured",
        columns,
        tuple(rows),
        "Ratios, with 95 % intervals of ours, on other models and machines than the authors'. Of "
        "_ms figures less is better.",
    )


def notes_table(document: Document) -> Table:
    """Notes on each row that a reader must know."""
    rows = tuple(
        (row["name"], note) for row in document["rows"] for note in _notes(row["environment"])
    )
    failed = tuple(
        (row["name"], f"failed: {row['error']}") for row in document["rows"] if row["error"]
    )
    return Table("Notes", ("row", "note"), rows + failed)


def provenance_lines(document: Document) -> list[str]:
    """Command, workload, machine and versions."""
    provenance, machine = document["provenance"], document["machine"]
    versions = ", ".join(f"{name} {found}" for name, found in provenance["versions"].items())
    return [
        f"Command: {' '.join(provenance['command'])}",
        *(["Interrupted: not all rounds were measured"] if document["interrupted"] else []),
        f"Workload: {provenance['workload']} ({provenance['workload_hash']}), "
        f"{provenance['prompts']} prompts, "
        f"{provenance['sequences']} sequences of {provenance['prompt_tokens']} + "
        f"{provenance['output_tokens']} tokens, {provenance['repeats']} rounds, "
        f"seed {provenance['seed']}",
        f"Machine: {machine['cpu']}, {machine['threads']} threads, "
        f"{machine['ram_bytes'] / 1e9:.0f} GB, {machine['system']} {machine['kernel']}",
        f"Versions: {versions}; commit {provenance['commit'] or 'unknown'}; "
        f"{provenance['created']}",
    ]


def _notes(environment: Mapping[str, Any]) -> list[str]:
    found = [*environment.get("inactive", ()), *environment.get("notes", ())]
    if environment.get("lossy"):
        found.append("lossy: what is missing decides the precision, so outputs depend on the cache")
    if environment.get("plan"):
        found.append(f"plan: {environment['plan']}")
    return [str(note) for note in found]


def _text(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    metric = Metric(**value)
    if metric.unit == "bytes":
        small = Metric(metric.value / _MEGA, metric.low / _MEGA, metric.high / _MEGA, metric.n, "")
        return format_metric(small)
    return format_metric(metric)


def _unit(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    unit = next(row[name]["unit"] for row in rows if name in row)
    return "MB" if unit == "bytes" else str(unit)
