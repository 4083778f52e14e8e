"""What a bench measured is kept when it is interrupted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.derived.scratch import scratch_folder
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.engine_client.session import EngineSession
from tuner.processes.start import python_path

WORDS = ("bench", "--model", "m", "--vram", str(BUDGET_BYTES), "--workload", "workload.yaml")
ENVIRONMENT = {"PYTHONPATH": python_path()}
POLICIES = ("--policies", "on_demand,lru", "--repeats", "3")


def strike_at(monkeypatch: pytest.MonkeyPatch, method: str, call: int, number: int) -> None:
    """Send this process a signal in the n-th call of a session's method."""
    plain, calls = getattr(EngineSession, method), [0]

    def struck(self, *arguments, **named):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), number)
        return plain(self, *arguments, **named)

    monkeypatch.setattr(EngineSession, method, struck)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("call", "rounds"), [(2, (1, 0)), (4, (2, 1)), (6, (3, 2))])
def test_rounds_until_then_are_kept(
    tune: Tune, monkeypatch: pytest.MonkeyPatch, call: int, rounds: tuple[int, int], number: int
):
    strike_at(monkeypatch, "measure", call, number)
    done = tune(*WORDS, *POLICIES, "--json")
    assert done.code == 130, done.err
    assert done.document["interrupted"] is True
    rows = done.document["rows"]
    counts = [row["metrics"].get("output_tps", {"n": 0})["n"] for row in rows]
    assert tuple(counts) == rounds
    assert [bool(row["error"]) for row in rows] == [count == 0 for count in rounds]


def test_people_get_the_table_and_the_report(
    tune: Tune, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    strike_at(monkeypatch, "measure", 4, signal.SIGINT)
    done = tune(*WORDS, *POLICIES, "--report", "bench.md")
    assert done.code == 130
    assert "on_demand" in done.out
    assert "interrupted: 1 to 2 of 3 rounds of each row are shown" in done.err
    assert "Interrupted: not all rounds were measured" in (folder / "bench.md").read_text()


def test_before_anything_was_measured_that_is_said(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    strike_at(monkeypatch, "configure", 1, signal.SIGTERM)
    done = tune(*WORDS, *POLICIES, "--json")
    assert done.code == 130
    assert [row["metrics"] for row in done.document["rows"]] == [{}, {}]
    assert "interrupted: 0 of 3 rounds" in done.err


def test_an_interrupt_while_engines_end_loses_nothing(tune: Tune, monkeypatch: pytest.MonkeyPatch):
    strike_at(monkeypatch, "close", 1, signal.SIGINT)
    done = tune(*WORDS, *POLICIES, "--json")
    assert done.code == 130
    assert [row["metrics"]["output_tps"]["n"] for row in done.document["rows"]] == [3, 3]


def test_a_bench_that_ends_is_not_interrupted(tune: Tune):
    done = tune(*WORDS, *POLICIES, "--json")
    assert (done.code, done.document["interrupted"]) == (0, False)


def test_a_bench_removes_what_a_killed_one_left(tune: Tune, folder: Path):
    cache = folder / "cache" / "expertune"
    program = f"""
import os, signal
from pathlib import Path
from engine.derived.scratch import scratch_folder
with scratch_folder(Path({str(cache)!r})) as folder:
    (folder / "weights").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, check=False)
    assert len(list((cache / "scratch").iterdir())) == 1
    with scratch_folder(folder):  # of another place
        assert tune(*WORDS, "--repeats", "1").code == 0
    assert list((cache / "scratch").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_itself_keeps_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    monkeypatch.setenv("EXPERTUNE_FAKE", '{"slow_s": 0.3}')
    command = [sys.executable, "-m", "tuner", *WORDS, "--policies", "on_demand,lru"]
    with Path("out").open("wb") as out, Path("err").open("wb") as err:
        process = subprocess.Popen(
            [*command, "--repeats", "50"], env={**os.environ, **ENVIRONMENT}, stdout=out, stderr=err
        )
        until = time.monotonic() + 60
        while "round 3/" not in Path("err").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=30) == 130, Path("err").read_text()
    assert "on_demand" in Path("out").read_text()
    assert "interrupted: 2" in Path("err").read_text()
