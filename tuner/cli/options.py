"""Options that several commands share, and the parsing of their text."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.types import BITS, parse_size_bytes, shown
from tuner.cli.extras import require_extra
from tuner.cli.output import print_note
from tuner.definition.duration import MOST_S, parse_duration_s
from tuner.definition.text import split_words
from tuner.definition.workload import FittedWorkload, choose_workload, describe_default
from tuner.engine_client.process import ENGINE_COMMAND, WorkerLimits
from tuner.engine_client.session import EngineSession, worker_factory
from tuner.errors import UsageError
from tuner.folders import default_storage, resolve_model, user_path
from tuner.formatting import format_duration
from tuner.store.database import open_database, open_read_only
from tuner.store.repository import Store

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A Hugging Face id, a local folder, or `demo`."),
]
Vram = Annotated[
    str | None, typer.Option("--vram", help="Budget of the device: 8GB, 8GiB, 512MB or bytes.")
]
Device = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda:0 or any device of torch.")
]
WorkloadSource = Annotated[
    str | None,
    typer.Option("--workload", help="chat, code, summary, demo or a workload YAML."),
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Own prompts: .jsonl, .json, .csv or .txt.")
]
Storage = Annotated[
    str | None,
    typer.Option("--storage", help="sqlite:///FILE or postgresql://...; default: your own store."),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

SMALLEST_PLAIN_BYTES = 1_000_000  # a plain number below it was meant with a unit

# Another engine with the same protocol, as shell words.
ENGINE_VARIABLE = "EXPERTUNE_ENGINE"
BASELINES_COMMAND = (sys.executable, "-m", "engine.baselines")
SERVE_COMMAND = (sys.executable, "-m", "engine.serve")


def read_size(option: str, text: str | None) -> int | None:
    """Parses a size in bytes; None if none was given; UsageError with one sentence."""
    if text is None:
        return None
    if "," in text:
        raise UsageError(
            f"{option} {shown(text)}: this command takes one budget; a decimal takes a point: 8.5GB"
        )
    try:
        size = parse_size_bytes(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if text.strip().isdecimal() and size < SMALLEST_PLAIN_BYTES:
        raise UsageError(
            f"{option} {text.strip()} is {size} bytes: write the unit, {size}GB or {size}MB"
        )
    return size


def read_budgets(text: str | None) -> dict[str, Any]:
    """The budget section for `--vram 4GB,6GB,8GB`: the largest budget, and the curve of the
    others."""
    if text is None:
        return {}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    units = [part.lstrip("0123456789._ ") for part in parts]
    if any(units) and not all(units):  # 4,6,8GB and 8,5GB
        unit = next(filter(None, units))
        each = ",".join(
            part if own else part + unit for part, own in zip(parts, units, strict=True)
        )
        raise UsageError(
            f"--vram {shown(text)}: give each size its unit, {shown(each)}; a decimal takes a "
            f"point: 8.5{shown(unit)}"
        )
    sizes = sorted({read_size("--vram", part) or 0 for part in parts or [text]})
    return {"vram_bytes": sizes[-1], **({"curve": sizes[:-1]} if len(sizes) > 1 else {})}


def read_duration(option: str, text: str | None) -> float | None:
    """Parses a duration in seconds; None if none was given; UsageError with one sentence."""
    return None if text is None else read_duration_between(option, text)


def read_duration_between(
    option: str, text: str, least_s: float = 0.0, most_s: float = MOST_S
) -> float:
    """Parses a duration between two limits in seconds; UsageError with one sentence."""
    try:
        found_s = parse_duration_s(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if not least_s <= found_s <= most_s:
        raise UsageError(
            f"{option} {text}: write at least {format_duration(least_s)} and at most "
            f"{format_duration(most_s)}"
        )
    return found_s


def note_default(named: object) -> None:
    """Says on stderr which text figures speak for, if the user chose none."""
    if not named:
        print_note(describe_default())


def chosen_workload(workload: str | None, prompts: Path | None, **changes: Any) -> Workload:
    """The text to run, as the two options choose it; changes: fields given beside them."""
    check_one_text(workload, prompts)
    return choose_workload(workload or "", str(prompts or ""), **changes)


def check_one_text(workload: str | None, prompts: Path | None) -> None:
    """Raises UsageError if both options are given."""
    if workload is not None and prompts is not None:
        raise UsageError("--workload and --prompts both name the text to run: leave one out")


def noted(fitted: FittedWorkload) -> Workload:
    """The workload that runs; says on stderr what was changed for the model."""
    for note in fitted.notes:
        print_note(note)
    return fitted.workload


def require_model(model: str | None) -> str:
    """The model as the engine expects it; UsageError if none was given."""
    if not model:
        raise UsageError("no model was given: add --model (a folder, an id, or `demo`)")
    return resolve_model(model)


def portable_model(model: str | None) -> str | None:
    """The model as it is stored: `demo` and ids unchanged, folders as absolute paths."""
    if not model or model == "demo":
        return model
    folder = user_path(model)
    return str(folder.resolve()) if folder.exists() else model


def read_settings(pairs: list[str]) -> dict[str, list[Any]]:
    """Parses `path=value[,value...]` pairs by path; UsageError for an invalid setting."""
    settings: dict[str, list[Any]] = {}
    for pair in pairs:
        path, _, values = pair.partition("=")
        path, choices = path.strip(), [one.strip() for one in values.split(",") if one.strip()]
        if not choices:
            raise UsageError(
                f"--set {shown(pair)}: write path=value, such as cache.expert_bytes=25%"
            )
        if path == "device.name":
            raise UsageError("--set device.name would be reported, not opened: use --device")
        if path in settings:
            raise UsageError(f"--set {shown(path)} stands twice: write several values by commas")
        for choice in choices:
            EngineConfig().overlay({path: choice})
        settings[path] = list[Any](choices)
    return settings


def engine_command() -> tuple[str, ...]:
    """The engine's program: ours, or the one that EXPERTUNE_ENGINE names."""
    other = os.environ.get(ENGINE_VARIABLE)
    return tuple(shlex.split(other)) if other else ENGINE_COMMAND


def baseline_command(name: str) -> tuple[str, ...]:
    """The program of a baseline engine with the same protocol."""
    other = os.environ.get(ENGINE_VARIABLE)
    return (*(shlex.split(other) if other else BASELINES_COMMAND), "--baseline", name)


def serve_command() -> tuple[str, ...]:
    """The program that can serve: ours, or the one that EXPERTUNE_ENGINE names.

    Raises UsageError if the packages that ours needs are missing.
    """
    if other := os.environ.get(ENGINE_VARIABLE):
        return tuple(shlex.split(other))
    require_extra("`tune deploy`", "serve")
    return SERVE_COMMAND


def open_session(
    model: str,
    device: str | None = None,
    trust_remote_code: bool = False,
    stall_s: float = 0.0,
    command: tuple[str, ...] | None = None,
    revision: str | None = None,
) -> EngineSession:
    """Creates an engine session; nothing starts before its first use.

    revision: of a Hugging Face id; `local`, the revision of a folder's deployment, selects none.
    """
    limits = WorkerLimits(operation_s=stall_s)
    return EngineSession(
        model,
        device or "auto",
        trust_remote_code,
        worker_factory(command or engine_command(), limits),
        None if revision == "local" else revision,
    )


@contextlib.contextmanager
def open_store(storage: str | None) -> Iterator[Store]:
    """Opens the store for writing during the block."""
    store = Store(open_database(storage or default_storage()))
    with contextlib.closing(store.database):
        yield store


@contextlib.contextmanager
def open_store_read_only(storage: str | None) -> Iterator[Store]:
    """Opens the store for reading during the block."""
    store = Store(open_read_only(storage or default_storage()))
    with contextlib.closing(store.database):
        yield store


def read_bits(text: str) -> tuple[int, ...]:
    """Parses precisions such as `8,4`; UsageError with the allowed ones."""
    found = []
    for word in split_words(text):
        if word not in {str(bits) for bits in BITS}:
            raise UsageError(f"--bits {text}: allowed are {', '.join(map(str, BITS))}")
        found.append(int(word))
    if not found:
        raise UsageError(f"--bits names none: allowed are {', '.join(map(str, BITS))}")
    return tuple(found)


@contextlib.contextmanager
def terminate_interrupts() -> Iterator[Callable[[], bool]]:
    """Makes SIGTERM end a study as Ctrl-C does, resumably. Yields a function that tells whether
    either came, because an exception raised during finalization is lost."""
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, interrupt) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
