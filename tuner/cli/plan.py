"""`tune plan`: shows what fits a budget, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.config.settings import EngineConfig, base_config
from engine.errors import InfeasibleError
from engine.facts.machine import probe
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, load_timings, timings_path
from engine.memory import plan as memory
from engine.policy.batch_plan import IoComputePlan
from engine.trace.trace import Trace, load_kept_trace, load_trace
from engine.types import format_at_least, format_bytes
from tuner.cli import options
from tuner.cli.automatic import automatic_choices
from tuner.cli.counts import MOST_COUNT
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.definition.workload import (
    describe_workload,
    fit_workload,
    needed_capacity,
    summarize_workload,
)
from tuner.errors import InfeasibleStudyError, UsageError
from tuner.folders import cache_folder
from tuner.replay.predict import longest, timings_for
from tuner.replay.required_memory import ERROR_RATIO, BudgetAnswer, budget_for, kept_traces


def plan(
    model: options.Model = None,
    vram: options.Vram = None,
    device: options.Device = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=2, help="Capacity of a sequence; default: the workload's, at least 1024."),
    ] = None,
    workload: options.WorkloadSource = None,
    prompts: options.Prompts = None,
    count: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Micro-batches.")] = 1,
    target_tps: Annotated[
        float | None,
        typer.Option(min=0, help="The smallest budget for so many generated tokens a second."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="For --target-tps; default: the newest of this model.")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Show what fits a budget at each precision, and what rules choose, by the memory equation.

    For a Hugging Face id, only the description and the headers of its files are fetched. Where
    `tune profile` has timed the model, also shows how many micro-batches hide its transfers; with
    --target-tps, the smallest budget for a speed, replayed over a trace and labelled predicted.

    Example: tune plan --model demo --vram 60MB
    """
    source = options.require_model(model)
    budget_bytes = options.read_size("--vram", vram) or 0
    with options.open_session(source, device, trust_remote_code) as session:
        facts, opened = session.describe(), session.opened_device
    options.note_default(workload or prompts or tokens)
    work = options.noted(fit_workload(options.chosen_workload(workload, prompts), facts))
    capacity = tokens or needed_capacity(work, facts)
    # on the opened device: a driver's context counts too
    base = base_config(opened, capacity, budget_bytes, prompt_tokens=work.prompt_tokens)
    base = memory.with_embeddings_off_device(base.overlay({"batch.count": count}), facts)
    machine = probe(cache_folder()).fingerprint
    timings = load_timings(timings_path(cache_folder(), machine, facts.fingerprint, opened))
    rows = [_row(base, facts, bits, timings) for bits in _precisions(facts)]
    if not any(row["fits"] for row in rows):
        smallest = min((r["smallest_bytes"] for r in rows if r["smallest_bytes"]), default=None)
        hint = f"the smallest budget that would is {smallest} bytes" if smallest else ""
        shown = f" ({format_at_least(smallest)})" if smallest else ""
        raise InfeasibleStudyError(
            f"{facts.id} does not fit {format_bytes(budget_bytes)} at any precision; {hint}{shown}",
            smallest,
        )
    best = next(row for row in rows if row["fits"])
    chosen = memory.resolve(base.overlay({"precision.bits": best["bits"]}), facts)
    automatic = automatic_choices(*chosen, facts, work)
    document = {
        "model": facts.id,
        "budget_bytes": budget_bytes,
        "kv_max_tokens": capacity,
        "workload": summarize_workload(work),
        "rows": rows,
        "automatic": [choice.to_json() for choice in automatic],
    }
    answers = []
    if target_tps is not None:
        found = timings_for(facts, opened)
        answers = _budgets(target_tps, base, facts, found, trace)
        document["target"] = {
            "label": "predicted",
            "output_tps": target_tps,
            "error_ratio": ERROR_RATIO,
            "rows": [answer.to_json() for answer in answers],
        }
    if as_json:
        print_json(document)
        return
    _print_rows(facts, budget_bytes, rows)
    print_text(f"keys and values of {capacity} tokens a sequence: {describe_workload(work)}")
    print_table(
        f"Chosen by rule at {best['bits']} bits",
        ["setting", "value", "why"],
        [[choice.setting, choice.value, choice.reason] for choice in automatic],
    )
    if answers:
        _print_budgets(facts, target_tps or 0.0, answers)


def _budgets(
    target_tps: float,
    base: EngineConfig,
    facts: ModelFacts,
    timings: ModelTimings,
    trace: Path | None,
) -> list[BudgetAnswer]:
    """One answer for each precision that was timed."""
    path, recorded = (trace, load_trace(trace)) if trace else _newest_trace(facts)
    warm = [number for number, item in enumerate(recorded.passes) if item.group == 0]
    free = base.overlay({"budget.vram_bytes": 0, "kv.max_tokens": longest(recorded)})
    answers = []
    for bits in sorted(timings.expert_s, reverse=True):
        print_note(f"replaying {path.name} at {bits} bits")
        answers.append(budget_for(target_tps, bits, free, facts, recorded, timings, warm))
    return answers


def _newest_trace(facts: ModelFacts) -> tuple[Path, Trace]:
    for path in kept_traces(cache_folder(), facts.fingerprint):
        if (recorded := load_kept_trace(path)) is not None:
            return path, recorded
    raise UsageError(
        f"--target-tps replays a trace, and there is none of {facts.id}: record one with `tune "
        f"trace --model {facts.id}`, or name one with --trace"
    )


def _precisions(facts: ModelFacts) -> list[int | str]:
    """The available precisions: numbers of bits, and `prequantized` for a pre-quantized
    checkpoint."""
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
    fraction = fitted.resident_fraction(total)
    if timings is not None and bits in timings.expert_s:
        planned = IoComputePlan().plan(base.overlay({"precision.bits": bits}), facts, timings)
        row["plan"] = {
            "batch_count": planned.config.batch.count,
            "bottleneck": planned.bottleneck,
            "reason": planned.reason,
        }
    return {
        **row,
        "fits": True,
        "smallest_bytes": None,
        "resident_fraction": fraction,
        **fitted.to_json(),
    }


def _print_budgets(facts: ModelFacts, target_tps: float, answers: list[BudgetAnswer]) -> None:
    table = []
    for answer in answers:
        if answer.error is not None:
            table.append([answer.bits, answer.error, None, None])
        elif answer.smallest_bytes is None:
            fastest = f"{answer.fastest_tps:.3g} tokens/s with all experts resident"
            table.append([answer.bits, "none", fastest, None])
        else:
            low = format_bytes(answer.low_bytes or answer.smallest_bytes)
            high = format_bytes(answer.high_bytes) if answer.high_bytes else "more than all"
            fraction = f"{answer.fraction:.0%} of the experts"
            table.append(
                [answer.bits, format_at_least(answer.smallest_bytes), fraction, f"{low} to {high}"]
            )
    columns = ["#bits", "#smallest budget", "", f"if it errs by {ERROR_RATIO:.0%}"]
    print_table(
        f"{facts.id} at {target_tps:g} tokens/s: predicted, nothing was run", columns, table
    )


def _print_rows(facts: ModelFacts, budget_bytes: int, rows: list[dict[str, Any]]) -> None:
    parts = ("slots_bytes", "non_expert_bytes", "kv_bytes", "workspace_bytes", "staging_bytes")
    table = []
    for row in rows:
        if row["fits"]:
            figures = [format_bytes(row[part]) for part in (*parts, "total_bytes")]
            table.append([row["bits"], row["slots"], f"{row['resident_fraction']:.0%}", *figures])
        else:
            needed = row["smallest_bytes"]
            missing = f"needs {format_at_least(needed)}" if needed else "not possible"
            table.append([row["bits"], missing, *[None] * (len(parts) + 2)])
    budget = format_bytes(budget_bytes) if budget_bytes else "no limit"
    columns = [
        "#bits",
        "#slots",
        "#fraction",
        *(f"#{p.removesuffix('_bytes')}, bytes" for p in parts),
    ]
    print_table(f"{facts.id} in {budget}", [*columns, "#total"], table)
    for row in rows:
        if "plan" in row:
            print_text(
                f"{row['bits']} bits: {row['plan']['reason']} ({row['plan']['bottleneck']} "
                "bottleneck)"
            )
