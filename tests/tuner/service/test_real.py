"""Studies of the fake engine through a service of its own: to the end, ended, killed midway."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.study import BUDGET_BYTES
from tests.tuner.service.made import until
from tuner.deployment.document import parse_deployment

REQUEST = {
    "model": "owner/some-moe",
    "vram": BUDGET_BYTES,
    "name": "real",
    "trials": 4,
    "tasks": ["a_task"],
    "limit": 5,
    "prompts": ["one", "two", "three", "four"],
    "prompt_tokens": 8,
    "output_tokens": 8,
}
UNPREDICTED = {**REQUEST, "sampler": "random"}


@dataclass(frozen=True)
class Running:
    """`tune service` in a process of its own."""

    process: subprocess.Popen[bytes]
    client: httpx.Client

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(path, **options)

    def ended(self) -> list[dict[str, Any]]:
        """Trials that ended by themselves."""
        trials = self.get("/v1/studies/real/trials").json()["trials"]
        return [t for t in trials if t["state"] not in ("RUNNING", "INTERRUPTED")]

    def job(self) -> str:
        return str(self.get("/v1/studies/real").json()["job"]["state"])

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def running(folder: Path, slow_s: float = 0.0) -> Iterator[Running]:
    """The service on a free port of loopback; killed at the end where it still runs."""
    log = folder / "service.log"
    source = str(Path(__file__).resolve().parents[3])
    knobs = json.dumps({"slow_s": slow_s})
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", "service", "--port", "0"],
            env={**os.environ, "PYTHONPATH": source, "EXPERTUNE_FAKE": knobs},
            cwd=folder,
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )
    try:
        until(lambda: process.poll() is not None or "http://" in log.read_text())
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert found is not None, log.read_text()
        with httpx.Client(base_url=found.group(), timeout=60) as client:
            yield Running(process, client)
    finally:
        process.kill()
        process.wait()


def assert_kept(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """What ended before is there, the same trial with no repeat less: confirming adds some."""
    for was, now in zip(before, after, strict=False):
        for field in ("number", "state", "started", "params"):
            assert now[field] == was[field]
        assert now["metrics"].keys() >= was["metrics"].keys()
        for name, metric in was["metrics"].items():
            assert now["metrics"][name]["n"] >= metric["n"]


def test_a_study_through_http_from_start_to_config(folder: Path):
    with running(folder) as service:
        assert service.client.post("/v1/studies", json=REQUEST).status_code == 202
        with service.client.stream("GET", "/v1/studies/real/events") as answer:
            text = "".join(answer.iter_text())
        kinds = re.findall(r"^event: (\w+)$", text, re.MULTILINE)
        assert kinds.count("trial") == 4
        assert kinds[-1] == "end"
        assert service.job() == "DONE"
        best = service.get("/v1/configs/best", params={"model": "owner/some-moe", "vram": "1GB"})
        assert parse_deployment(best.text).provenance.study == "real"
        assert service.end(signal.SIGTERM) == 0


def test_a_service_that_is_ended_continues_its_study_later(folder: Path):
    with running(folder, slow_s=0.2) as service:
        service.client.post("/v1/studies", json=UNPREDICTED)
        until(service.ended, 60)
        before = service.ended()
        assert service.end(signal.SIGINT) == 130
    with running(folder) as service:
        until(lambda: service.job() == "DONE", 60)
        after = service.ended()
    assert len(after) == 4
    assert_kept(before, after)


@pytest.mark.chaos
def test_a_service_that_is_killed_loses_at_most_the_running_trial(folder: Path):
    with running(folder, slow_s=0.3) as service:
        service.client.post("/v1/studies", json=UNPREDICTED)
        until(service.ended, 60)
        before = service.ended()
        service.end(signal.SIGKILL)
    with running(folder) as service:
        until(lambda: service.job() == "DONE", 60)
        after = service.ended()
    assert len(after) == 4
    assert_kept(before, after)
