"""Studies made with the fake engine, for tests that need one in a store."""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.memory.plan import resolve
from tests.fakes import FAKE_ENGINE
from tests.fakes.fake_engine import facts_of
from tuner.__main__ import run
from tuner.cli import options
from tuner.search import space

ENGINE = f"{shlex.quote(sys.executable)} {shlex.quote(str(FAKE_ENGINE))}"
WORKLOAD = "name: tiny\nprompts: [one, two, three, four]\nprompt_tokens: 8\noutput_tokens: 8\n"
DEFINITION = """\
name: small
model: some-moe
budget: {{vram_bytes: {budget_bytes}}}
workload: workload.yaml
quality: {{tasks: [a_task], limit: 5}}
trials: 6
repeats: {{min: 2, max: 3}}
"""


def budget_of(bits: int, fraction: str, batch_count: int = 1) -> int:
    """The bytes that this fraction of the fake model's experts needs, by the memory equation."""
    config = EngineConfig().overlay(
        {"precision.bits": bits, "cache.expert_bytes": fraction, "batch.count": batch_count}
    )
    return resolve(config, facts_of("m"))[1].total_bytes


def smallest_budget(bits: int) -> int:
    """The least that the fake model needs at these bits, by the memory equation."""
    config = EngineConfig().overlay({"precision.bits": bits, "budget.vram_bytes": 1})
    try:
        resolve(config, facts_of("m"))
    except InfeasibleError as error:
        return error.smallest_bytes or 0
    raise AssertionError("one byte cannot hold a model")


# Room for nine tenths of the experts at 16 bits: some settings fit, some do not.
BUDGET_BYTES = budget_of(16, "90%")
# Too little for 16 bits by one byte; 8 bits fit.
TIGHT_BYTES = smallest_budget(16) - 1


def write_definition(folder: Path) -> Path:
    """study.yaml and workload.yaml in a folder; the definition's path."""
    (folder / "workload.yaml").write_text(WORKLOAD)
    path = folder / "study.yaml"
    path.write_text(DEFINITION.format(budget_bytes=BUDGET_BYTES))
    return path


def make_study(folder: Path, faults: str = "{}") -> None:
    """A finished study of five trials in a folder: its store under data/, its config beside."""
    write_definition(folder)
    tune_in(folder, "--definition", "study.yaml", "--trials", "5", faults=faults)


def tune_in(folder: Path, *words: str, faults: str = "{}") -> str:
    """What `tune` with these words prints in a folder, where it must succeed; its store is under
    data/. For what tests fraction: one that runs a command itself takes the fixture `tune`."""
    from tests.fakes import in_process  # which needs what is above

    with (
        _environment(folder, faults),
        mock.patch.object(options, "worker_factory", in_process.worker_factory),
        mock.patch.object(space, "multiplies_bytes", return_value=False),  # on any processor
        contextlib.chdir(folder),
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        assert run(words) == 0
    return printed.getvalue()


@contextlib.contextmanager
def _environment(folder: Path, faults: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(
        EXPERTUNE_ENGINE=ENGINE,
        EXPERTUNE_FAKE=faults,
        XDG_DATA_HOME=str(folder / "data"),
        XDG_CACHE_HOME=str(folder / "cache"),
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
