"""`tune --model M --vram 8GB`: runs a study from start to an exported config."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from typing import Annotated

import typer

from engine import __version__
from engine.facts.machine import Hardware, probe
from engine.types import format_bytes
from tuner.cli import options
from tuner.cli.output import print_json, print_text
from tuner.cli.study_output import check_found, plan_line, print_plan, print_result, result_document
from tuner.definition.policies import OWN
from tuner.definition.study import POLICY, StudyDefinition, load_definition
from tuner.definition.text import split_words
from tuner.definition.workload import describe_default, locate_workload
from tuner.deployment.export import check_writable
from tuner.errors import StoreError, StoreLostError, UsageError
from tuner.folders import cache_folder, default_storage, resolve_model
from tuner.search.samplers import check_sampler
from tuner.store.identity import asks_otherwise
from tuner.store.repository import Store
from tuner.store.url import parse_url
from tuner.study.displays import choose_display
from tuner.study.estimate import StudyPlan, plan_study
from tuner.study.progress import Display, StudyProgress
from tuner.study.run import StudyResult, run_study
from tuner.study.tasks import check_tasks, with_default_tasks
from tuner.workers.local import WorkerPool
from tuner.workers.ray_cluster import check_address

STUDY = "Study"
LIMITS = "Budget and limits"
TEXT = "What is run"


def _print_version(asked: bool) -> None:
    if asked:
        print_text(f"expertune {__version__}")
        raise typer.Exit


def study(
    context: typer.Context,
    model: options.Model = None,
    vram: options.Vram = None,
    ram: Annotated[
        str | None, typer.Option(help="Budget of the host tier.", rich_help_panel=LIMITS)
    ] = None,
    disk: Annotated[
        str | None, typer.Option(help="Budget of expert packs.", rich_help_panel=LIMITS)
    ] = None,
    device: options.Device = None,
    name: Annotated[
        str | None,
        typer.Option("--study", help="Its name; default: the model's.", rich_help_panel=STUDY),
    ] = None,
    storage: options.Storage = None,
    definition: Annotated[
        Path | None, typer.Option(help="A study YAML; options lie over it.", rich_help_panel=STUDY)
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="How many (default 24).", rich_help_panel=STUDY)
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option(
            help="After it no trial starts: 25m, 1h30m or seconds; 0: never (default 1h, or 0 with "
            "--trials).",
            rich_help_panel=STUDY,
        ),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            help="Presets to search beside its own settings: fate,promoe.", rich_help_panel=STUDY
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="Some of throughput, latency, quality (output_tps, tpot_ms, quality).",
            rich_help_panel=STUDY,
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="auto, tpe, gp, nsga2, random or grid.", rich_help_panel=STUDY),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Processes that run trials, an accelerator each.", rich_help_panel=STUDY
        ),
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Workers on a Ray cluster: its address, or auto (extra `ray`).",
            rich_help_panel=STUDY,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.", rich_help_panel=STUDY)] = None,
    min_quality: Annotated[
        float | None,
        typer.Option(help="At most 1, as good as 16 bits; such as 0.98.", rich_help_panel=LIMITS),
    ] = None,
    max_ttft_ms: Annotated[
        float | None, typer.Option(help="Longest time to first token.", rich_help_panel=LIMITS)
    ] = None,
    max_tpot_ms: Annotated[
        float | None, typer.Option(help="Longest time per token.", rich_help_panel=LIMITS)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Own prompts: .jsonl, .json (also ShareGPT), .csv or .txt.", rich_help_panel=TEXT
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(help="chat, code, summary, demo or a workload YAML.", rich_help_panel=TEXT),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="With or without template.", rich_help_panel=TEXT),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="lm-eval tasks or YAML files (whose code runs), by commas; docs/tuning.md.",
            rich_help_panel=TEXT,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Items of each task.", rich_help_panel=TEXT)
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only continue; fail if there is no such study.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print plan and estimate, then stop.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the recommended config goes.")
    ] = None,
    as_json: options.Json = False,
    json_progress: Annotated[
        bool,
        typer.Option("--json-progress", help="Progress on stderr as JSON lines (docs/json.md)."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Find the best way to run a Mixture-of-Experts model in your memory budget.

    Example: tune --model demo --vram 60MB --trials 12
    """
    if context.invoked_subcommand is not None:
        return
    if model is None and definition is None:
        print_text(context.get_help())
        raise typer.Exit(2)
    wanted = load_definition(
        definition,
        {
            "model": options.portable_model(model),
            "device": device,
            "name": name,
            "trust_remote_code": trust_remote_code or None,
            "budget": {
                **options.read_budgets(vram),
                "ram_bytes": options.read_size("--ram", ram),
                "disk_bytes": options.read_size("--disk", disk),
            },
            "workload": None if workload is None else locate_workload(workload, Path()),
            "prompts": _prompts(prompts, workload),
            "chat": chat,
            "objectives": None if objectives is None else split_words(objectives),
            "constraints": {
                "min_quality": min_quality,
                "max_ttft_ms": max_ttft_ms,
                "max_tpot_ms": max_tpot_ms,
            },
            "quality": {"tasks": _task_paths(tasks), "limit": limit},
            "trials": trials,
            "timeout_s": options.read_duration("--timeout", timeout),
            "space": {POLICY: None if policies is None else [OWN, *split_words(policies)]},
            "sampler": _sampler(sampler),
            "seed": seed,
            "output": str(output) if output else None,
        },
    )
    pool, display = WorkerPool(workers, ray), choose_display(json_progress)
    _run(wanted, storage, resume, dry_run, as_json, pool, display)


def _run(
    wanted: StudyDefinition,
    storage: str | None,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    pool: WorkerPool,
    display: Display,
) -> None:
    if not wanted.budget.vram_bytes:
        raise UsageError("no budget was given: add --vram, such as --vram 8GB")
    _check_pool(pool)
    check_writable(wanted.output_path)
    parse_url(storage or default_storage())
    wanted = with_default_tasks(wanted)
    progress = StudyProgress([display])
    try:
        with options.terminate_interrupts() as interrupted, progress.showing():
            done = _plan_and_run(wanted, storage, resume, dry_run, pool, progress, interrupted)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if isinstance(done, StudyPlan):
        print_plan(done, as_json)
        return
    if as_json and done.lost is None:
        print_json(result_document(done))
    elif not as_json:
        print_result(done)
    if done.lost is not None:
        raise StoreLostError(done.lost)
    check_found(done)


def _plan_and_run(
    wanted: StudyDefinition,
    storage: str | None,
    resume: bool,
    dry_run: bool,
    pool: WorkerPool,
    progress: StudyProgress,
    interrupted: Callable[[], bool],
) -> StudyPlan | StudyResult:
    """The plan alone for a dry run, else the result of the study."""
    pinned = _studied_revision(wanted, storage) if resume else None
    session = options.open_session(
        resolve_model(wanted.model),
        wanted.device,
        wanted.trust_remote_code,
        wanted.stall_s,
        revision=pinned,
    )
    session.watch = progress.engine_said
    with session:
        if not wanted.workload and not wanted.prompts:
            progress.note(describe_default())
        progress.note(f"opening {wanted.model}")
        checked = check_tasks(wanted, session)
        wanted = checked.definition
        for note in (*wanted.fitted_workload(session.describe()).notes, *checked.notes):
            progress.note(note)
        progress.began("planning")
        plan = plan_study(wanted, session)
        if dry_run:
            _check_unchanged(wanted, storage)
            return plan
        progress.note(plan_line(plan))
        hardware = probe(cache_folder())
        if lacking := _beyond_memory(wanted, session.opened_device, hardware):
            progress.note(lacking)
        with options.open_store(storage) as store:
            wanted = wanted.model_copy(update={"name": _free_name(wanted, store)})
            try:
                return run_study(
                    wanted, session, store, hardware, progress, pool, plan.estimate, interrupted
                )
            except KeyboardInterrupt:
                progress.note(
                    f"interrupted: finished trials of study '{wanted.study_name}' are kept; the "
                    "same command continues it"
                )
                raise


def _beyond_memory(wanted: StudyDefinition, device: str, hardware: Hardware) -> str | None:
    """A note for a budget on the CPU that this machine or container does not have."""
    budget = wanted.budget.vram_bytes
    if device != "cpu" or budget <= hardware.ram_bytes:
        return None
    return (
        f"the budget of {format_bytes(budget)} is more than the {format_bytes(hardware.ram_bytes)} "
        "of memory that this machine, or this container, has: trials that use it will be ended"
    )


def _check_pool(pool: WorkerPool) -> None:
    if pool.ray is None:
        return
    check_address(pool.ray)
    if pool.workers > 1:
        raise UsageError("--workers is for this machine, --ray for a cluster: leave one out")


def _check_unchanged(wanted: StudyDefinition, storage: str | None) -> None:
    """Raises StudyError if the study of this name asked something else."""
    try:
        with options.open_store_read_only(storage) as store:
            digests = {study.name: study.search_digest for study in store.studies()}
    except StoreError:
        return  # there is none yet, or the study will bring it up to date
    if wanted.name and digests.get(wanted.name, wanted.search_digest()) != wanted.search_digest():
        raise asks_otherwise(wanted.name)


def _studied_revision(wanted: StudyDefinition, storage: str | None) -> str:
    """The revision with which the study to be continued was begun."""
    with options.open_store(storage) as store:
        named = wanted.model_copy(update={"name": _free_name(wanted, store)})
        return str(store.study(named.study_name).facts["revision"])


def _free_name(wanted: StudyDefinition, store: Store) -> str:
    """The given name; else the model's, numbered if the study of that name has another
    definition."""
    if wanted.name:
        return wanted.name
    digests = {study.name: study.search_digest for study in store.studies()}
    names = (f"{wanted.study_name}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2))))
    return next(n for n in names if digests.get(n, "") in ("", wanted.search_digest()))


def _prompts(prompts: Path | None, workload: str | None) -> str | None:
    """The file of prompts; a workload takes the place of those in the definition."""
    options.check_one_text(workload, prompts)
    if prompts is None:
        return None if workload is None else ""
    return str(prompts.resolve())


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _task_paths(text: str | None) -> list[str] | None:
    tasks = _words(text)
    if tasks is None:
        return None
    if not tasks:
        raise UsageError("--tasks names none: write a task's name or file, or leave it out")
    for task in tasks:
        if task.endswith((".yaml", ".yml")) and not Path(task).is_file():
            raise UsageError(f"--tasks: there is no file {task}")
    return [str(Path(t).resolve()) if t.endswith((".yaml", ".yml")) else t for t in tasks]


def _sampler(name: str | None) -> str | None:
    if name is not None:
        check_sampler(name)
    return name
