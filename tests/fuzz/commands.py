"""Target: command lines, of every command and option, over the fake engine.

An input is a JSON list of words. It ends with an exit code that the commands document and never
with an error that nobody expected; the server commands are stopped where they would begin to serve.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from functools import cache
from typing import Any, NoReturn
from unittest import mock

import typer
from hypothesis import strategies as st

from tests.fakes import in_process
from tests.fakes.study import ENGINE, write_definition
from tests.fuzz.definitions import exported
from tests.fuzz.derived import TRACED, npz
from tests.fuzz.documents import read_json, write_bytes
from tests.fuzz.mutations import NUMBERS, TEXTS
from tests.fuzz.oracle import Arena, FindingError, Run
from tests.fuzz.target import Shape, Target
from tuner.__main__ import run as tune
from tuner.cli import dashboard, options, train
from tuner.cli.app import app
from tuner.errors import StudyError, WorkerError
from tuner.service import serve

CODES = (0, 1, 2, 3, 4, 130)
WITHOUT_ENGINE = ("", "bench", "compare", "worker")  # what would take long even with a fake one
VALUES = (
    "demo", "some-moe", "missing", "dense", "small", "nothing", "given/file.yaml", "8GB", "4GB,8GB",
    "given/study.yaml", "given/workload.yaml", "given/trace.npz", "given/none.yaml", "chat", "cpu",
    "emulated:laptop_8gb", "predicted:h100", "cuda:7", "auto", "fate,lru", "own", "16,4", "1h30m",
    "precision.bits=4,8", "cache.expert_bytes=25%", "kv.max_tokens=64", "llama.cpp", "vllm", "0.9",
    "sqlite:///data/other.db", "sqlite:///given/study.yaml", "data/out.yaml", "data/out", "knee",
    "throughput", "tpe", "output_tps,quality", "http://localhost:3000", "1", "2", "64", "all",
)  # fmt: skip


class _Refusing:
    """An engine that can open nothing."""

    alive, pid = True, None

    def start(self) -> None:
        pass

    def kill(self) -> None:
        pass

    close = interrupt = kill

    def request(self, operation: str, *_: Any, **__: Any) -> NoReturn:
        raise WorkerError(f"there is no engine here for '{operation}'", "model")


def _nothing_starts(*_: Any, **__: Any) -> NoReturn:
    raise StudyError("nothing is started here")


@contextlib.contextmanager
def _commands(place: Arena) -> Iterator[Run]:
    place.named = True
    write_definition(place.given)
    (place.given / "file.yaml").write_bytes(exported())
    (place.given / "trace.npz").write_bytes(npz(TRACED))
    refusing = [True]

    def factory(*arguments: Any) -> Any:
        return _Refusing if refusing[0] else in_process.worker_factory(*arguments)

    def run(data: bytes) -> None:
        words = _words(data)
        if words is None:
            return
        command = words[0] if words and not words[0].startswith("-") else ""
        refusing[0] = command in WITHOUT_ENGINE
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = tune(words)
        finally:
            shutil.rmtree(place.root / "data", ignore_errors=True)
        said = err.getvalue()
        if code not in CODES or "Traceback" in said or "tune: unexpected " in said:
            raise FindingError(f"exit code {code}: {said[-500:]}")
        if "--json" in words and out.getvalue().strip():
            json.loads(out.getvalue())

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (options, "worker_factory", factory),
            (dashboard, "start_module", _nothing_starts),
            (train, "start_module", _nothing_starts),
            (serve.Server, "run", _nothing_starts),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.dict("os.environ", {"EXPERTUNE_ENGINE": ENGINE}))
        yield run


def _words(data: bytes) -> list[str] | None:
    """The words of an input, as a system would pass them; None if it is no list."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        return None
    words = [one.partition("\x00")[0][:30_000] for one in found[:30]]
    return None if any("postgres" in word for word in words) else words


@cache
def _commands_of() -> tuple[tuple[tuple[str, ...], tuple[Any, ...]], ...]:
    """Every command with its parameters."""
    found: list[tuple[tuple[str, ...], tuple[Any, ...]]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        found.append((path, tuple(command.params)))
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return tuple(found)


@st.composite
def command_lines(draw: Any) -> bytes:
    """A command, some of its options with right and wrong values, and words that are neither."""
    texts = [text for text in TEXTS if type(text) is str]
    numbers = [str(number) for number in NUMBERS if abs(len(f"{number!s:.9}")) < 9]
    values = st.sampled_from(VALUES) | st.sampled_from((*texts, *numbers)) | st.text(max_size=8)
    path, params = draw(st.sampled_from(_commands_of()))
    words = list(path)
    for param in draw(st.lists(st.sampled_from(params), max_size=5)) if params else ():
        names = [*param.opts, *param.secondary_opts]
        if param.param_type_name == "argument":
            words.append(draw(values))
        elif any("completion" in name for name in names):
            continue
        else:
            words.append(draw(st.sampled_from(names)))
            if not getattr(param, "is_flag", False) or draw(st.integers(0, 20)) == 0:
                words.append(draw(values))
    if draw(st.integers(0, 5)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(values))
    return json.dumps(words).encode()


SEEDS = (
    ["--model", "demo", "--vram", "60MB", "--dry-run"],
    ["--definition", "given/study.yaml", "--trials", "2", "--json"],
    ["plan", "--model", "some-moe", "--vram", "60MB", "--json"],
    ["studies", "--json"],
    ["show", "small"],
    ["compare", "given/file.yaml", "given/file.yaml"],
    ["run", "--config", "given/file.yaml", "--prompt", "a"],
    ["export", "small", "-o", "data/out.yaml"],
    ["verify", "given/file.yaml"],
    ["trace", "--model", "some-moe", "-o", "data/t.npz", "--repeats", "1"],
    ["replay", "given/trace.npz", "--device", "predicted:laptop_8gb", "--policies", "lru,fate"],
    ["pack", "--list"],
    ["doctor", "--store", "--json"],
    ["service", "token", "add", "ci"],
    ["train", "eviction", "given/trace.npz", "--percent", "25"],
)

TARGETS = (
    Target(
        "command_line", _commands, lambda: [json.dumps(words).encode() for words in SEEDS],
        Shape(read_json, write_bytes), own=command_lines, cases=60, most_s=20,
    ),
)  # fmt: skip
