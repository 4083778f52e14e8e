"""Commands take turns on a card: who waits is told for whom, and not for ever."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from tests.tuner.engine_client.test_session import session_of
from tuner.engine_client import session as sessions
from tuner.engine_client.card_lock import card_section
from tuner.errors import WorkerError

HOLD = """
import sys, time
from pathlib import Path
from tuner.engine_client.card_lock import card_section
with card_section(Path(sys.argv[1]), "cuda:0", sys.argv[2]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_command(folder: Path, card: str) -> Iterator[subprocess.Popen[str]]:
    """A process that computes on the card until it reads a line or is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), card],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_is_told_for_whom_and_gives_up_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with another_command(tmp_path, "GPU-a") as other, caplog.at_level(logging.WARNING):
        with (
            pytest.raises(WorkerError, match=r"cuda:1 was not free for 0 s.*--device") as given_up,
            card_section(tmp_path, "cuda:1", "GPU-a", silent_s=0.05, wait_s=0.2),
        ):
            pytest.fail("two commands computed on one card")
        assert given_up.value.failure == "timeout"
        assert "waiting for cuda:1: `tune " in caplog.text
        assert f"(process {other.pid}) computes on it" in caplog.text


def test_a_card_is_known_by_its_uuid_and_others_are_free(tmp_path: Path) -> None:
    with another_command(tmp_path, "GPU-a"):
        with card_section(tmp_path, "cuda:0", "GPU-b", silent_s=0, wait_s=0):
            pass
        with card_section(tmp_path, "cuda:0", "MIG-GPU-a/1/0", silent_s=0, wait_s=0):
            pass


def test_a_process_that_dies_leaves_the_card_free(tmp_path: Path) -> None:
    with another_command(tmp_path, "GPU-a") as other:
        other.kill()
        other.wait()
        with card_section(tmp_path, "cuda:0", "GPU-a", silent_s=5, wait_s=0):
            pass


def test_the_next_one_runs_as_soon_as_the_card_is_free(tmp_path: Path) -> None:
    with another_command(tmp_path, "GPU-a") as other:
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        started = time.monotonic()
        with card_section(tmp_path, "cuda:0", "GPU-a", silent_s=30, wait_s=0):
            assert time.monotonic() - started < 20


def test_a_folder_that_cannot_be_written_locks_nothing(tmp_path: Path) -> None:
    (tmp_path / "cards").write_text("a file in the way")
    with card_section(tmp_path, "cuda:0", "GPU-a"):
        pass


def test_a_session_on_a_card_takes_a_turn_for_each_request_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[str, str]] = []

    @contextlib.contextmanager
    def noted(folder: Path, device: str, card: str) -> Iterator[None]:
        turns.append((device, card))
        yield

    def on_a_card(self: Any, result: dict[str, Any]) -> None:
        self.opened_device, self.card = "cuda:0", "GPU-a"

    monkeypatch.setattr(sessions, "card_section", noted)
    monkeypatch.setattr(sessions.EngineSession, "_take_device", on_a_card)
    with session_of(tmp_path) as session:
        session.configure(EngineConfig())
        session.measure(Workload("w", ("a",)))
    assert turns == [("cuda:0", "GPU-a")] * 2
