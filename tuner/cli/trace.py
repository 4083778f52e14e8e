"""`tune trace` and `tune replay`: record routing; replay policies over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.config.settings import EngineConfig, base_config
from engine.policy.learned import load_learned
from engine.trace.trace import load_trace
from engine.types import format_bytes
from tuner.bench.run import grid_rows
from tuner.cli import options
from tuner.cli.counts import MOST_COUNT
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.definition.policies import load_policy
from tuner.definition.study import MOST_SEED
from tuner.definition.text import split_words
from tuner.definition.workload import fit_workload, workload_hash
from tuner.folders import cache_folder
from tuner.replay.predict import ReplayRow, facts_of, longest, replay_configs, timings_for

SHOWN = ("output_tps", "decode_tps", "prefill_tps", "expert_hit_rate", "oracle_hit_rate",
         "stall_ms_per_token")  # fmt: skip


def trace(
    model: options.Model = None,
    vram: options.Vram = None,
    device: options.Device = None,
    workload: options.WorkloadSource = None,
    prompts: options.Prompts = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    sequences: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    repeats: Annotated[
        int, typer.Option(min=1, max=MOST_COUNT, help="Rounds over the workload.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Number of the first round.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="path=value: how the engine runs meanwhile.")
    ] = None,
    gate_inputs: Annotated[
        bool, typer.Option("--gate-inputs", help="Keep what routers read, to train predictors.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o")] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Record the routing of every MoE layer while a workload runs.

    Example: tune trace --model demo --repeats 4 -o demo-trace.npz
    """
    source = options.require_model(model)
    changes = {
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "sequences": sequences,
    }
    task = options.chosen_workload(workload, prompts, **changes)
    with options.open_session(source, device, trust_remote_code) as session:
        facts = session.facts
        task = options.noted(fit_workload(task, facts))
        capacity = max(task.prompt_tokens + task.output_tokens, 64)
        base = base_config(capacity=capacity, vram_bytes=options.read_size("--vram", vram) or 0)
        (point,) = [point for _, point in grid_rows(options.read_settings(settings or []))][:1]
        session.configure(base.overlay(point))
        name = f"{facts.fingerprint}-{workload_hash(task)}-{seed}-{repeats}.npz"
        path = (output or cache_folder() / "traces" / name).resolve()
        print_note(f"recording {repeats} rounds of {task.sequences} sequences")
        found = session.request(
            "trace",
            path=str(path),
            workload=task.to_json(),
            repeats=repeats,
            seed=seed,
            gate_inputs=gate_inputs,
        )
    if as_json:
        print_json(found)
    else:
        print_text(f"{path}: {found['tokens']} tokens, {format_bytes(found['bytes'])}")


def replay(
    file: Annotated[Path, typer.Argument(metavar="TRACE", help="Made by `tune trace`.")],
    vram: options.Vram = None,
    device: Annotated[
        str,
        typer.Option(help="cpu, cuda:0, emulated:<machine> as profiled, or predicted:<machine>."),
    ] = "cpu",
    timings: Annotated[
        Path | None, typer.Option(help="Timings that `tune profile` wrote elsewhere.")
    ] = None,
    policies: Annotated[str | None, typer.Option(help="Named policies, by commas.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value[,value...]: one row a value."),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="Another trace that statistics start from.")
    ] = None,
    warm_groups: Annotated[
        int, typer.Option(min=0, help="Groups of sequences that come first uncounted.")
    ] = 1,
    as_json: options.Json = False,
) -> None:
    """Predict the speed of policies from a trace and timings, in seconds. Nothing is run.

    Example: tune replay demo-trace.npz --device predicted:laptop_8gb --policies on_demand,lru
    """
    recorded = load_trace(file)
    facts = facts_of(recorded)
    found = timings_for(facts, device, timings)
    budget = options.read_size("--vram", vram) or 0
    base = base_config(found.device, longest(recorded), budget)
    if history is not None:
        base = base.overlay({"cache.options.trace": str(history)})
    configs = {}
    names = split_words(policies or "")
    for name in names or [""]:
        overlay = load_policy(name).engine if name else {}
        for label, point in grid_rows(options.read_settings(settings or [])):
            key = " ".join(part for part in (name, label) if part) or "default"
            configs[key] = base.overlay({**overlay, **point})
    rows = replay_configs(
        configs,
        facts,
        recorded,
        found,
        learned=load_learned(EngineConfig(), facts, cache_folder()),
        history=load_trace(history) if history is not None else None,
        warm_groups=warm_groups,
    )
    if as_json:
        document = {"rows": [row.to_json() for row in rows], "timings": found.to_json()}
        print_json({**document, "label": "predicted", "trace": str(file)})
    else:
        _print_rows(rows, found.device)


def _print_rows(rows: list[ReplayRow], device: str) -> None:
    table = [
        [row.name, *(row.metrics.get(name) for name in SHOWN), f"{row.seconds:.2f} s"]
        for row in rows
        if row.error is None
    ]
    columns = ["row", *(f"#{name}" for name in SHOWN), "#replayed in"]
    print_table(f"Predicted for {device}, nothing was run", columns, table)
    for row in rows:
        if row.error is not None:
            print_note(f"{row.name}: {row.error}")
