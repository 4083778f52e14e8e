"""Starts local `tune worker` processes; they exit with the parent.

Each has its own engine, each on its own accelerator, and there are no more than accelerators. On
the CPU they take turns while something is timed, so they help there only as far as a trial does
other work: packing, evaluating, loading.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.facts.cards import cuda_order
from engine.facts.machine import Hardware
from tuner.folders import data_folder
from tuner.processes.secrets import without_password
from tuner.processes.start import ENDING_S, end_process, start_module


@dataclass(frozen=True)
class WorkerPool:
    """The worker pool of a study. workers: processes of this machine, including the parent; ray:
    address of a cluster, or `auto`, whose accelerators each run one more."""

    workers: int = 1
    ray: str | None = None


ALONE = WorkerPool()


def devices_for(device: str, opened: str, hardware: Hardware, workers: int) -> list[str]:
    """The device of each worker, the parent's first: of so many on host memory, of at most one on
    each accelerator, whose memory two engines would not share.

    device: as asked for; opened: the parent's, as the engine names it.
    """
    if opened == "cpu" or opened.startswith("emulated:"):
        return [device] * workers
    cards = hardware.gpus
    here = cuda_order([c.name for c in cards], [c.uuid for c in cards], os.environ)
    if device not in ("auto", "cuda") or len(here) < 2:
        return [device]
    return [f"cuda:{number}" for number in range(min(workers, len(here)))]


@contextlib.contextmanager
def joined_workers(study: str, storage: str, devices: Sequence[str], trust: bool) -> Iterator[None]:
    """Runs one more worker for each device during the block; at its end they finish their
    trials."""
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
    url, secrets = without_password(storage)
    command = ["worker", study, "--storage", url]
    command += ["--device", device, *(["--trust-remote-code"] if trust else [])]
    return start_module(
        "tuner", *command, environment=secrets, stdout=log, stderr=log, cwd=Path.cwd()
    )
