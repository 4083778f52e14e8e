"""`tune bench`: measures configs, policies, settings and baseline engines side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.config.settings import EngineConfig, base_config
from engine.contract.messages import BASELINES, BaselineName
from engine.contract.requests import Workload
from engine.derived.scratch import sweep_scratch
from engine.facts.model import ModelFacts
from engine.memory.kv import one_memory
from engine.memory.plan import with_embeddings_off_device
from tuner.bench.ablation import ablate
from tuner.bench.report.document import bench_document
from tuner.bench.report.tables import Table, ablation_table, published_table
from tuner.bench.report.write import SUFFIXES, write_report
from tuner.bench.run import BenchRow, RowResult, grid_rows, run_bench
from tuner.cli import options
from tuner.cli.counts import MOST_COUNT
from tuner.cli.extras import require_extra
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.definition.policies import PolicyFile, load_policy
from tuner.definition.study import MOST_SEED
from tuner.definition.text import split_words
from tuner.definition.workload import (
    describe_workload,
    fit_workload,
    needed_capacity,
    shorten_prompts,
)
from tuner.deployment.document import Deployment, load_deployment
from tuner.deployment.export import check_writable
from tuner.engine_client.session import EngineSession
from tuner.errors import InfeasibleStudyError, StudyError, UsageError
from tuner.folders import cache_folder, resolve_model
from tuner.formatting import format_metric

BASELINES_EXTRA = ("xllamacpp", "gguf", "conversion")  # import names of the extra's packages
SHOWN = ("output_tps", "tpot_ms", "ttft_ms", "expert_hit_rate", "stall_ms_per_token")


def bench(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Deployment YAMLs.")
    ] = None,
    model: options.Model = None,
    vram: options.Vram = None,
    device: options.Device = None,
    policies: Annotated[str | None, typer.Option(help="Named policies, by commas.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="path=value[,value...]: one row a value."),
    ] = None,
    ablating: Annotated[
        bool,
        typer.Option("--ablate", help="Add each policy without each of its mechanisms."),
    ] = False,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Add other engines as rows.")
    ] = False,
    workload: options.WorkloadSource = None,
    prompts: options.Prompts = None,
    prompt_tokens: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    output_tokens: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    sequences: Annotated[int | None, typer.Option(min=1, max=MOST_COUNT)] = None,
    repeats: Annotated[int, typer.Option(min=1, max=MOST_COUNT, help="Rounds.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="All figures and what bounds them, in FILE.md or FILE.html."),
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Measure several ways to run a model, interleaved, with intervals and ratios.

    Example: tune bench --model demo --vram 60MB --policies on_demand,lru --set precision.bits=8,4
    """
    if ablating and not policies:
        raise UsageError("--ablate takes policies apart: name some with --policies")
    if report is not None and report.suffix not in SUFFIXES:
        raise UsageError(f"--report {report}: write a name that ends in .md or .html")
    if report is not None:
        check_writable(report)
    if policies is not None and not _names(policies):
        raise UsageError("--policies names none: write some, or leave it out")
    if report is not None and report.suffix == ".html":
        require_extra(f"--report {report}", "dashboard")
    grid = grid_rows(options.read_settings(settings or []))
    presets = {name: load_policy(name) for name in _names(policies)}
    deployments = [load_deployment(path) for path in files or ()]
    if model is None and not deployments:
        raise UsageError("nothing to measure: name deployment files, or --model and --vram")
    pinned = None
    if model is None and (policies or settings or baselines):
        model, pinned = deployments[0].model.id, deployments[0].model.revision
    changes = {
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "sequences": sequences,
    }
    work = _workload(workload, prompts, deployments, changes)
    options.note_default(workload or prompts or deployments)
    sessions: dict[tuple[str, str, str | None], EngineSession] = {}

    def session_of(source: str, where: str, revision: str | None = None) -> EngineSession:
        """One engine per model and device, shared by the rows that run on it."""
        key = (resolve_model(source), where, revision)
        if key not in sessions:
            sessions[key] = options.open_session(
                key[0], where, trust_remote_code, revision=revision
            )
        return sessions[key]

    rows = [
        BenchRow(
            path.stem,
            found.config(),
            session_of(found.model.id, found.config().device.name, found.model.revision),
        )
        for path, found in zip(files or (), deployments, strict=True)
    ]
    for path, found in zip(files or (), deployments, strict=True):
        capacity = found.config().kv.max_tokens
        work = options.noted(shorten_prompts(work, capacity, path.name))
    if model is not None:
        own = session_of(model, device or "auto", pinned)
        work = options.noted(fit_workload(work, own.describe()))
        budget_bytes = options.read_size("--vram", vram)
        base = _base(budget_bytes, own.opened_device, work, deployments, own.describe())
        if presets or settings or not rows:
            rows += _own_rows(base, own, presets, grid, ablating)
        if baselines:
            rows += _baseline_rows(base, resolve_model(model), trust_remote_code, pinned)
    sweep_scratch(cache_folder())
    try:
        with options.terminate_interrupts() as interrupted:
            outcome = run_bench(rows, work, repeats, seed, print_note, interrupted)
    finally:
        sweep_scratch(cache_folder())  # what an engine that was killed has left
    results = outcome.results
    if not outcome.interrupted:
        _check_measured(results)
    document = bench_document(outcome, presets, work, repeats, seed)
    if report is not None:
        write_report(report, document)
    if as_json:
        print_json(document)
    else:
        print_text(f"measured with {describe_workload(work)}")
        _print_rows(results)
        for table in (ablation_table(document), published_table(document)):
            _print_extra(table)
    if outcome.interrupted:
        print_note(f"interrupted: {_rounds_words(results, repeats)} are shown")
        raise typer.Exit(130)


def _names(text: str | None) -> list[str]:
    return split_words(text or "")


def _workload(
    workload: str | None,
    prompts: Path | None,
    deployments: Sequence[Deployment],
    changes: dict[str, Any],
) -> Workload:
    if workload is None and prompts is None and deployments:
        given = {key: value for key, value in changes.items() if value is not None}
        found = deployments[0].workload.to_workload()
        return Workload.from_json({**found.to_json(), **given})
    return options.chosen_workload(workload, prompts, **changes)


def _base(
    budget_bytes: int | None,
    device: str,
    work: Workload,
    deployments: Sequence[Deployment],
    facts: ModelFacts,
) -> EngineConfig:
    if budget_bytes is None and deployments:
        budget_bytes = deployments[0].budget.vram_bytes
    base = base_config(device, needed_capacity(work, facts), budget_bytes or 0)
    return with_embeddings_off_device(base, facts)


def _own_rows(
    base: EngineConfig,
    session: EngineSession,
    presets: Mapping[str, PolicyFile],
    grid: list[tuple[str, dict[str, Any]]],
    ablating: bool,
) -> list[BenchRow]:
    if not presets:
        return [
            BenchRow(label or "default", base.overlay(point), session, settings=point)
            for label, point in grid
        ]
    rows = []
    for policy, preset in presets.items():
        for label, point in grid:
            config = base.overlay({**preset.engine, **point})
            name = f"{policy} {label}".strip()
            rows.append(BenchRow(name, config, session, policy=policy, settings=point))
            for found in ablate(preset, base, point) if ablating else ():
                name = f"{policy} without {found.mechanism} {label}".strip()
                rows.append(
                    BenchRow(
                        name,
                        found.config,
                        session,
                        policy=policy,
                        without=found.mechanism,
                        settings=point,
                    )
                )
    return rows


def _baseline_rows(
    base: EngineConfig, source: str, trust_remote_code: bool, revision: str | None
) -> list[BenchRow]:
    if not one_memory(base):
        print_note(
            f"rows of other engines compute on the processor alone and use nothing of "
            f"{base.device.name}: they show what the card brings, not which engine uses it better"
        )
    return [
        BenchRow(
            baseline,
            base,
            options.open_session(
                source,
                base.device.name,
                trust_remote_code,
                command=options.baseline_command(baseline),
                revision=revision,
            ),
            own_process=True,
        )
        for baseline in _installed_baselines()
    ]


def _installed_baselines() -> tuple[BaselineName, ...]:
    """The baseline engines whose packages are installed; reports on stderr which are missing and
    how to install them."""
    if all(find_spec(package) is not None for package in BASELINES_EXTRA):
        return BASELINES
    print_note(
        "without llama.cpp: its rows need the extra 'baselines' "
        "(pip install 'expertune[baselines]', or `make baselines` in the source tree)"
    )
    return tuple(baseline for baseline in BASELINES if not baseline.startswith("llama.cpp"))


def _print_rows(results: list[RowResult]) -> None:
    table = []
    for result in results:
        metrics = result.metrics()
        ratio = result.ratios(results[0]).get("output_tps")
        figures = [format_metric(metrics.get(name)) for name in SHOWN]
        table.append([result.name, *figures, f"x {format_metric(ratio)}" if ratio else "-"])
    columns = ["row", *(f"#{name}" for name in SHOWN), "#to the first"]
    print_table("Means with 95 % intervals over interleaved rounds", columns, table)
    for result in results:
        for note in result.environment.get("inactive", ()):
            print_note(f"{result.name}: {note}")
        if result.error is not None:
            print_note(f"{result.name}: not measured: {result.error}")


def _print_extra(table: Table) -> None:
    if table.rows:
        print_table(f"{table.title}. {table.note}", table.columns, table.rows)


def _rounds_words(results: list[RowResult], repeats: int) -> str:
    counts = [len(result.sentinels) for result in results]
    few, many = min(counts), max(counts)
    done = str(many) if few == many else f"{few} to {many}"
    return f"{done} of {repeats} rounds of each row"


def _check_measured(results: list[RowResult]) -> None:
    if any(result.error is None for result in results):
        return
    smallest = min((r.smallest_bytes for r in results if r.smallest_bytes), default=None)
    words = "; ".join(f"{r.name}: {r.error}" for r in results)
    if all(r.failure in ("does_not_fit", "out_of_memory") for r in results):
        raise InfeasibleStudyError(f"no row fitted: {words}", smallest)
    raise StudyError(f"no row could be measured: {words}")
