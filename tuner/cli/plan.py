"""`tune plan`: what fits a budget, before anything runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine import memory
from engine.config import EngineConfig
from engine.errors import InfeasibleError
from engine.hardware import probe
from engine.protocol import ModelFacts
from engine.replay.planning import plan_micro_batches
from engine.timings import ModelTimings, load_timings, timings_path
from engine.types import format_bytes
from tuner.cli import options
from tuner.cli.output import print_json, print_table, print_text
from tuner.errors import InfeasibleStudyError
from tuner.folders import cache_folder


def plan(
    model: options.Model = None,
    vram: options.Vram = None,
    device: options.Device = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Room in a sequence (default 1024).")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Micro-batches.")] = 1,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Show what fits a budget at each precision, by the memory equation.

    Of a Hugging Face id only the description and the headers of its files are fetched.
    Where `tune profile` has timed the model, also how many micro-batches hide its transfers.

    Example: tune plan --model demo --vram 60MB
    """
    source = options.require_model(model)
    budget_bytes = options.read_size("--vram", vram) or 0
    with options.open_session(source, device, trust_remote_code) as session:
        facts, opened = session.describe(), session.opened_device
    room = tokens or min(EngineConfig().kv.max_tokens, facts.max_positions)
    base = EngineConfig().overlay(
        {"budget.vram_bytes": budget_bytes, "kv.max_tokens": room, "batch.count": count}
    )
    machine = probe(cache_folder()).fingerprint
    timings = load_timings(timings_path(cache_folder(), machine, facts.fingerprint, opened))
    rows = [_row(base, facts, bits, timings) for bits in _precisions(facts)]
    if not any(row["fits"] for row in rows):
        smallest = min((r["smallest_bytes"] for r in rows if r["smallest_bytes"]), default=None)
        hint = f"the smallest budget that would is {smallest} bytes" if smallest else ""
        shown = f" ({format_bytes(smallest)})" if smallest else ""
        raise InfeasibleStudyError(
            f"{facts.id} does not fit {format_bytes(budget_bytes)} at any precision; {hint}{shown}",
            smallest,
        )
    if as_json:
        print_json({"model": facts.id, "budget_bytes": budget_bytes, "rows": rows})
    else:
        _print_rows(facts, budget_bytes, rows)


def _precisions(facts: ModelFacts) -> list[int | str]:
    """What can be asked for: numbers of bits, and the published codes where there are any."""
    return [int(name) if name.isdigit() else name for name in facts.expert_bytes]


def _row(
    base: EngineConfig, facts: ModelFacts, bits: int | str, timings: ModelTimings | None
) -> dict[str, Any]:
    total = facts.moe_layers * facts.experts
    row: dict[str, Any] = {"bits": bits, "record_bytes": facts.expert_bytes[str(bits)] // total}
    try:
        _, fitted = memory.resolve(base.overlay({"precision.bits": bits}), facts)
    except InfeasibleError as error:
        return {**row, "fits": False, "smallest_bytes": error.smallest_bytes, "reason": str(error)}
    share = fitted.resident_share(total)
    if timings is not None and bits in timings.expert_s:
        planned = plan_micro_batches(base.overlay({"precision.bits": bits}), facts, timings)
        row["plan"] = {
            "batch_count": planned.config.batch.count,
            "binds": planned.binds,
            "reason": planned.reason,
        }
    return {
        **row,
        "fits": True,
        "smallest_bytes": None,
        "resident_share": share,
        **fitted.to_json(),
    }


def _print_rows(facts: ModelFacts, budget_bytes: int, rows: list[dict[str, Any]]) -> None:
    parts = ("slots_bytes", "dense_bytes", "kv_bytes", "workspace_bytes", "staging_bytes")
    table = []
    for row in rows:
        if row["fits"]:
            figures = [format_bytes(row[part]) for part in (*parts, "total_bytes")]
            table.append([row["bits"], row["slots"], f"{row['resident_share']:.0%}", *figures])
        else:
            needed = row["smallest_bytes"]
            missing = f"needs {format_bytes(needed)}" if needed else "not possible"
            table.append([row["bits"], missing, *[None] * (len(parts) + 2)])
    budget = format_bytes(budget_bytes) if budget_bytes else "no limit"
    columns = ["#bits", "#slots", "#share", *(f"#{p.removesuffix('_bytes')}" for p in parts)]
    print_table(f"{facts.id} in {budget}", [*columns, "#total"], table)
    for row in rows:
        if "plan" in row:
            print_text(
                f"{row['bits']} bits: {row['plan']['reason']} ({row['plan']['binds']} binds)"
            )
