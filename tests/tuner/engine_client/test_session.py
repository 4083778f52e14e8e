"""EngineSession: a model kept open across deaths, and figures that are checked."""

import json
import sys
from pathlib import Path

import pytest

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions, Workload
from tests.fakes import FAKE_ENGINE
from tuner.engine_client.process import EngineWorker
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError

WORK = Workload("w", ("a",))


def session_of(folder: Path, *faults: tuple[str, str, int]) -> EngineSession:
    listed = [{"kind": kind, "op": op, "at": at} for kind, op, at in faults]
    knobs = json.dumps({"faults": listed, "counter": str(folder / "counts.json")})

    def start() -> EngineWorker:
        return EngineWorker(
            folder / "log",
            command=(sys.executable, str(FAKE_ENGINE)),
            environment={"EXPERTUNE_FAKE": knobs},
        )

    return EngineSession("m", start_worker=start)


def test_a_dead_worker_is_replaced_and_the_model_opened_again(tmp_path: Path):
    with session_of(tmp_path, ("crash", "measure", 1)) as session:
        session.configure(EngineConfig())
        with pytest.raises(WorkerError, match="ended with code 7"):
            session.measure(WORK)
        with pytest.raises(WorkerError, match="nothing is configured"):
            session.measure(WORK)
        session.configure(EngineConfig())
        assert session.measure(WORK).metrics["output_tps"].value > 0


def test_a_replaced_worker_opens_the_revision_that_was_opened_first(tmp_path: Path):
    with session_of(tmp_path, ("crash", "measure", 1)) as session:
        session.configure(EngineConfig())
        first = session.facts.revision
        with pytest.raises(WorkerError, match="ended with code 7"):
            session.measure(WORK)
        session.configure(EngineConfig())
        assert session.facts.revision == first


def test_impossible_figures_are_bad_output(tmp_path: Path):
    with session_of(tmp_path, ("bad_output", "measure", 1)) as session:
        session.configure(EngineConfig())
        with pytest.raises(WorkerError, match="nothing was generated") as caught:
            session.measure(WORK)
        assert caught.value.failure == "bad_output"


def test_only_one_configuration_and_nothing_else_is_fresh(tmp_path: Path):
    with session_of(tmp_path) as session:
        session.configure(EngineConfig())
        assert session.fresh
        session.configure(EngineConfig())
        assert not session.fresh
        session.evaluate(("t",), TaskOptions(limit=1))
        session.refresh()
        session.configure(EngineConfig())
        assert session.fresh


@pytest.mark.parametrize("operation", ["describe", "open"])
def test_a_worker_that_dies_while_it_opens_is_replaced_once(tmp_path: Path, operation: str):
    with session_of(tmp_path, ("kill", operation, 1)) as session:
        assert session.describe().family
        assert session.facts.family
    again = tmp_path / "again"
    again.mkdir()
    faults = [("kill", operation, at) for at in (1, 2)]
    with session_of(again, *faults) as session, pytest.raises(WorkerError, match="was killed"):
        session.configure(EngineConfig()) if operation == "open" else session.describe()


def test_a_refusal_to_open_is_no_death(tmp_path: Path):
    with session_of(tmp_path, ("error", "open", 1)) as session:
        with pytest.raises(WorkerError, match="found no memory"):
            session.configure(EngineConfig())
        assert json.loads((tmp_path / "counts.json").read_text()) == {"open": 1}
