"""Runs a study's workers on the machines of a Ray cluster, one for each accelerator.

ray_driver.py, a separate process, places and watches them. A lost node costs the trial that ran
there. Every node must be able to reach the storage. Needs the extra `ray`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from tuner.errors import StudyError, UsageError
from tuner.folders import data_folder
from tuner.processes.secrets import without_password
from tuner.processes.start import end_process, start_module

log = logging.getLogger(__name__)

ENDING_S = 10.0


def check_address(address: str) -> None:
    """Raises UsageError if this is not the address of a cluster."""
    if address != "auto" and not re.fullmatch(r".+:\d{1,5}", address):
        raise UsageError(f"--ray {address}: write auto, or the head's address such as host:6379")


@contextlib.contextmanager
def placed_workers(
    study: str,
    storage: str,
    address: str,
    devices: tuple[str, str],
    trust: bool,
    lost: Callable[[str], None],
) -> Iterator[None]:
    """Runs workers on the cluster at `address` (`auto`: this machine's cluster) during the block;
    at its end they finish their trials.

    devices: the study's, and the one that this process uses; lost: called with the id of a worker
    whose node, actor or process died, at the end of the block at the latest, and with all ids if
    the block is left by an exception. Raises StudyError without Ray, without a cluster, or for a
    storage that other machines cannot reach.
    """
    url, secrets = without_password(storage)
    arguments = ["worker", study, "--storage", url]
    order = {
        "address": address,
        "device": devices[0],
        "own_device": devices[1],
        "arguments": [*arguments, *(["--trust-remote-code"] if trust else [])],
        "environment": secrets,
        "local": storage.startswith("sqlite"),
    }
    with _driver(order) as (process, messages):
        first = _next(messages)
        if "placed" not in first:
            raise StudyError(first.get("failed", "--ray: the process that places workers died"))
        log.info("%s workers on the cluster at %s", first["placed"], address)
        try:
            yield
        except BaseException:
            end_process(process, ENDING_S)  # and with it every worker
            while message := _next(messages):
                lost(message.get("worker") or message["lost"])
            raise
        while message := _next(messages):
            if "lost" in message:
                log.warning("%s; its trial is tried once more", message["why"])
                lost(message["lost"])
        process.wait()


@contextlib.contextmanager
def _driver(order: dict[str, Any]) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Yields the driver process and its messages; the process and its workers end with the
    block."""
    folder = data_folder() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    with (
        (folder / f"ray-{os.getpid()}.log").open("ab") as output,
        os.fdopen(reading, encoding="utf-8") as messages,
    ):
        try:
            process = start_module(
                "tuner.workers.ray_driver",
                str(writing),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                text=True,
                pass_fds=(writing,),
                cwd=Path.cwd(),
                process_group=0,  # Ctrl-C is for the study
            )
        finally:
            os.close(writing)
        try:
            assert process.stdin is not None
            with process.stdin, contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(order) + "\n")
            yield process, messages
        finally:
            end_process(process, ENDING_S)


def _next(messages: IO[str]) -> dict[str, Any]:
    """The next message; {} when the process has ended."""
    line = messages.readline()
    return dict(json.loads(line)) if line.strip() else {}
