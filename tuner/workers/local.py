"""Who runs trials of a study; the workers of this machine: `tune worker` processes that die with
their parent.

Each keeps an engine of its own, on an accelerator of its own where there are several. On the
processor they take turns while something is timed, so they help there as far as a trial does other
things: packing, evaluating, loading.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.facts.machine import Hardware
from tuner.folders import data_folder
from tuner.processes.start import ENDING_S, end_process, start_module


@dataclass(frozen=True)
class WorkerPool:
    """Who runs trials of a study. workers: processes of this machine, the parent among them; ray:
    address of a cluster, or `auto`, whose accelerators each run one more."""

    workers: int = 1
    ray: str | None = None


ALONE = WorkerPool()


def devices_for(device: str, hardware: Hardware, workers: int) -> list[str]:
    """Which device each of so many workers takes, the parent first."""
    several = device in ("auto", "cuda") and len(hardware.gpus) > 1
    if not several:
        return [device] * workers
    return [f"cuda:{number % len(hardware.gpus)}" for number in range(workers)]


@contextlib.contextmanager
def joined_workers(study: str, storage: str, devices: Sequence[str], trust: bool) -> Iterator[None]:
    """One more worker for each device while the block runs; at its end they finish their trials."""
    folder = data_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as undo:
        for number, device in enumerate(devices):
            log = undo.enter_context((folder / f"joined-{os.getpid()}-{number}.log").open("ab"))
            process = _start(study, storage, device, trust, log.fileno())
            undo.callback(end_process, process)
            processes.append(process)
        yield
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=ENDING_S * 60)


def _start(study: str, storage: str, device: str, trust: bool, log: int) -> subprocess.Popen[bytes]:
    command = ["worker", study, "--storage", storage]
    command += ["--device", device, *(["--trust-remote-code"] if trust else [])]
    return start_module("tuner", *command, stdout=log, stderr=log, cwd=Path.cwd())
