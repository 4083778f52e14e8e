"""Several workers of one study: they share its trials, and one that dies costs only its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.facts.machine import Gpu, probe
from tests.tuner.conftest import Tune
from tuner.processes.identity import is_gone, own_id
from tuner.workers.local import devices_for


def test_two_workers_share_the_trials(tune: Tune, misbehave, folder: Path):
    misbehave(slow_s=0.1)  # or one has run all before the other has joined
    done = tune("--definition", "study.yaml", "--trials", "10", "--sampler", "random",
                "--workers", "2", "--json")  # fmt: skip
    assert done.code == 0, done.err
    trials = done.document["trials"]
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    assert 10 <= len(trials) <= 11  # both may begin the last one
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED", "INFEASIBLE"}
    assert len({trial["worker"] for trial in trials}) == 2
    logs = list((folder / "data" / "expertune" / "logs").glob("joined-*.log"))
    assert " ran here" in logs[0].read_text()


def test_a_worker_needs_a_study_that_runs(tune: Tune, study: Path):
    done = tune("worker", "small")
    assert done.code == 1
    assert "does not run (FINISHED)" in done.err


def test_each_worker_takes_an_accelerator_of_its_own():
    machine = probe()
    gpu = Gpu(0, "card", None, 8_000_000_000, *[None] * 8)
    two = replace(machine, gpus=(gpu, replace(gpu, index=1)))
    assert devices_for("auto", "cuda:0", two, 2) == ["cuda:0", "cuda:1"]
    assert devices_for("auto", "cuda:0", two, 3) == ["cuda:0", "cuda:1"], "two would not fit one"
    assert devices_for("cuda:1", "cuda:1", two, 2) == ["cuda:1"]
    one = replace(machine, gpus=(gpu,))
    assert devices_for("auto", "cuda:0", one, 2) == ["auto"]
    assert devices_for("cpu", "cpu", two, 2) == ["cpu", "cpu"]
    emulated = "emulated:laptop_8gb"
    assert devices_for(emulated, emulated, two, 2) == [emulated] * 2
    assert devices_for("auto", "cpu", replace(machine, gpus=()), 2) == ["auto", "auto"]


def test_a_process_is_gone_when_it_ended_or_its_number_was_used_again():
    host, pid, began = own_id().rsplit(" ", 2)
    assert not is_gone(own_id())
    assert is_gone(f"{host} {pid} {int(began) - 100}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_gone(f"{host} {ended.pid} {began}")
    assert not is_gone(f"another-host {pid} {began}")
    assert is_gone(None)
    assert int(pid) == os.getpid()


def test_a_killed_worker_costs_its_running_trial_only(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_FAKE", json.dumps({"slow_s": 0.15}))
    arguments = ["--definition", "study.yaml", "--trials", "8", "--sampler", "random"]
    parent = subprocess.Popen([sys.executable, "-m", "tuner", *arguments, "--workers", "2"])
    try:
        joined = _joined(parent.pid, within_s=60)
        os.kill(joined, 9)
        assert parent.wait(timeout=120) == 0
    finally:
        parent.kill()
        parent.wait()
    shown = tune("show", "small", "--json").document
    states = [trial["state"] for trial in shown["trials"]]
    assert "RUNNING" not in states
    assert sum(state != "INTERRUPTED" for state in states) >= 8


def _joined(parent: int, within_s: float) -> int:
    """The process of the joined worker, once it runs a trial's engine."""

    end = time.monotonic() + within_s
    while time.monotonic() < end:
        for child in psutil.Process(parent).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                line = " ".join(child.cmdline())
                if "tuner worker" in line and child.children():
                    return child.pid
        time.sleep(0.1)
    raise AssertionError("no worker joined")


def test_a_worker_elsewhere_ends_when_the_study_is_interrupted(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EXPERTUNE_FAKE", json.dumps({"slow_s": 0.15}))
    command = [sys.executable, "-m", "tuner"]
    arguments = ["--definition", "study.yaml", "--trials", "500", "--sampler", "random"]
    parent = subprocess.Popen([*command, *arguments])
    worker = None
    try:
        _eventually(lambda: bool(_trials(tune)))
        worker = subprocess.Popen([*command, "worker", "small"])
        _eventually(lambda: len({trial["worker"] for trial in _trials(tune)}) == 2)
        parent.send_signal(signal.SIGINT)
        assert parent.wait(timeout=60) == 130
        assert worker.wait(timeout=60) == 0
    finally:
        for process in filter(None, (parent, worker)):
            process.kill()
            process.wait()
    assert "RUNNING" not in [trial["state"] for trial in _trials(tune)]


def _trials(tune: Tune) -> list[dict[str, Any]]:
    shown = tune("show", "small", "--json")
    return shown.document["trials"] if shown.code == 0 else []


def _eventually(holds: Callable[[], bool], within_s: float = 60.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "it never held"
        time.sleep(0.1)
