"""EngineWorker against the fake engine: answers, events, and every way to die."""

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from engine.config.settings import EngineConfig
from tests.fakes import FAKE_ENGINE
from tuner.engine_client.process import EngineWorker, WorkerLimits
from tuner.errors import WorkerError

pytestmark = pytest.mark.alone


def make_worker(
    tmp_path: Path, limits: WorkerLimits | None = None, **knobs: object
) -> EngineWorker:
    return EngineWorker(
        tmp_path / "worker.log",
        command=(sys.executable, str(FAKE_ENGINE)),
        limits=limits or WorkerLimits(),
        environment={"EXPERTUNE_FAKE": json.dumps(knobs)},
    )


def open_model(worker: EngineWorker) -> dict[str, object]:
    return worker.request("open", model="m", device="cpu", trust_remote_code=False)


def fault(kind: str, op: str = "open") -> dict[str, object]:
    return {"faults": [{"kind": kind, "op": op}]}


def test_answers_a_request(tmp_path: Path) -> None:
    with make_worker(tmp_path) as worker:
        assert open_model(worker)["runtime_bytes"] == 300_000_000


def test_hands_events_to_the_caller(tmp_path: Path) -> None:
    events = []
    with make_worker(tmp_path) as worker:
        open_model(worker)
        worker.request(
            "generate", on_event=events.append, prompt="p", max_tokens=2, temperature=0, seed=0
        )
    assert [event["text"] for event in events if event["event"] == "token"] == [" word0", " word1"]


def test_an_error_reply_keeps_the_worker(tmp_path: Path) -> None:
    with make_worker(tmp_path) as worker:
        open_model(worker)
        small = EngineConfig().overlay({"budget.vram_bytes": 1_000_000})
        with pytest.raises(WorkerError, match="at least") as caught:
            worker.request("configure", config=small.to_dict())
        assert caught.value.failure == "does_not_fit"
        assert caught.value.worker_exit_code == 3
        assert caught.value.smallest_bytes is not None
        assert worker.alive


@pytest.mark.parametrize(
    ("kind", "failure", "says"),
    [
        ("crash", "crash", "ended with code 7.*as it was told"),
        ("kill", "out_of_memory", "killed by the system"),
        ("garbage", "bad_output", "not JSON"),
    ],
)
def test_a_death_has_its_class_and_quotes_the_log(
    tmp_path: Path, kind: str, failure: str, says: str
) -> None:
    worker = make_worker(tmp_path, **fault(kind))
    worker.start()
    with pytest.raises(WorkerError, match=says) as caught:
        open_model(worker)
    assert caught.value.failure == failure
    assert not worker.alive


def test_heartbeats_are_not_progress(tmp_path: Path) -> None:
    limits = WorkerLimits(operation_s=1.0, heartbeat_s=30)
    with make_worker(tmp_path, limits, heartbeat_s=0.1, **fault("hang")) as worker:
        with pytest.raises(WorkerError, match="made no progress for 1 s") as caught:
            open_model(worker)
        assert caught.value.failure == "timeout"
        assert not worker.alive


def test_a_worker_without_heartbeat_is_killed(tmp_path: Path) -> None:
    limits = WorkerLimits(heartbeat_s=1.0)
    with make_worker(tmp_path, limits, **fault("freeze")) as worker:
        pid = worker.pid
        with pytest.raises(WorkerError, match="no heartbeat"):
            open_model(worker)
    assert not psutil.pid_exists(pid)


def test_close_leaves_no_process(tmp_path: Path) -> None:
    worker = make_worker(tmp_path)
    worker.start()
    pid = worker.pid
    worker.close()
    worker.close()
    assert not psutil.pid_exists(pid)


def test_the_worker_dies_with_its_parent(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        worker = make_worker(tmp_path, **fault("freeze"))
        worker.start()
        os.write(writing, str(worker.pid).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        pid = int(pipe.read())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_that_is_not_there_is_a_worker_error(tmp_path: Path) -> None:
    worker = EngineWorker(tmp_path / "log", command=("/no/such/program",))
    worker.start()
    with pytest.raises(WorkerError):
        open_model(worker)
