"""`tune deploy` on the real engine, as a stranger uses it: curl, OpenAI's client, a restart."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from tests.engine.conftest import TEXT, tiny_folder
from tests.engine.serve.made import eventually
from tuner.cli.options import SERVE_COMMAND
from tuner.deployment.document import DeployedWorkload, Deployment, dump_deployment
from tuner.engine_client.session import EngineSession, worker_factory
from tuner.store.database import open_read_only
from tuner.store.repository import Store

__all__ = ["tiny_folder"]  # the checkpoint that the engine's tests make
pytestmark = pytest.mark.slow
SECRET = "sk-do-not-write-this-down"
WORK = Workload(
    "tiny", tuple(TEXT[n : n + 60] for n in range(8)), prompt_tokens=16, output_tokens=16,
    sequences=4,
)  # fmt: skip
SETTINGS = {
    "kv.max_tokens": 256, "batch.count": 2, "device.name": "cpu", "compute.dtype": "float32",
    "budget.vram_bytes": 500_000_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Data and cache folders of their own, for this process and those it starts."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder / "data"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("EXPERTUNE_ENGINE", raising=False)
        yield folder


@pytest.fixture(scope="module")
def file(home: Path, tiny_folder: Path) -> Path:
    """A deployment of the tiny model with figures measured here."""
    return write_deployment(home / "deployment.yaml", tiny_folder, SETTINGS)


def write_deployment(path: Path, model: Path, settings: dict[str, Any]) -> Path:
    """A deployment file with figures measured here."""
    factory = worker_factory(SERVE_COMMAND)
    with EngineSession(str(model), "cpu", start_worker=factory) as session:
        configured = session.configure(EngineConfig().overlay(settings))
        report = session.measure(WORK, repeats=2)
        fingerprint = session.facts.fingerprint
    metrics = {name: vars(metric) for name, metric in report.metrics.items()}
    deployment = Deployment.model_validate(
        {
            "schema": "expertune/v1",
            "model": {"id": str(model), "revision": "local", "fingerprint": fingerprint},
            "budget": configured.config.to_dict()["budget"],
            "engine": configured.config.to_dict(),
            "workload": DeployedWorkload.of(WORK),
            "measured": {**metrics, "sentinel": vars(report.sentinel)},
            "quality": None,
            "neighbours": [],
            "machine": {},
            "provenance": {
                "study": "by-hand", "trial": 7, "seed": 0, "created": "2026-01-01T00:00:00+00:00",
                "versions": {}, "commit": None,
            },
        }
    )  # fmt: skip
    path.write_text(dump_deployment(deployment))
    return path


@contextmanager
def deployed(file: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """`tune deploy` in a process, and the document that it prints once it serves."""
    command = [sys.executable, "-m", "tuner", "deploy", str(file), "--name", "tiny", "--json"]
    process = subprocess.Popen(
        [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("}"):
                break
        yield process, json.loads("".join(lines) or "null")
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, notes = process.communicate(timeout=60)
    return process.returncode, notes


def curl(url: str, body: dict[str, Any] | None = None) -> Any:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is missing: install it")
    data = [] if body is None else ["-d", json.dumps(body)]
    command = [program, "-sS", "-H", f"authorization: Bearer {SECRET}", *data, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def test_a_stranger_uses_it_with_curl_and_openais_client_and_restarts_it(
    home: Path, file: Path
) -> None:
    with deployed(file, "--port", "0") as (process, said):
        assert said["model"] == "tiny"
        answer = curl(
            f"{said['url']}/completions",
            {"model": "tiny", "prompt": "The engine", "max_tokens": 5, "temperature": 0},
        )
        assert answer["usage"]["completion_tokens"] == 5
        assert curl(f"{said['url']}/models")["data"][0]["id"] == "tiny"
        code, notes = stop(process)
        assert (code, "draining" in notes) == (0, True), notes
    page = "http://localhost:3000"
    words = ("--port", str(said["port"]), "--cors-origin", page, "--cors-origin", "null")
    with deployed(file, *words) as (process, again):
        assert again["port"] == said["port"]
        read = httpx.get(f"{again['url']}/models", headers={"origin": page})
        assert read.headers["access-control-allow-origin"] == page
        client = openai.OpenAI(base_url=again["url"], api_key=SECRET)
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "The engine"}],
            max_tokens=5,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        assert list(stream)[-1].choices[0].finish_reason
        same = client.completions.create(
            model="tiny", prompt="The engine", max_tokens=5, temperature=0
        )
        assert same.choices[0].text == answer["choices"][0]["text"]
        code, more = stop(process, signal.SIGINT)
        assert (code, "2 finished" in more) == (130, True), more
    rows = Store(open_read_only(f"sqlite:///{home}/data/expertune/expertune.db")).telemetry()
    assert [row.deployment for row in rows] == ["by-hand/7"] * 2
    assert [row.payload["output_tokens"] for row in rows] == [5, 10]
    written = (
        notes
        + more
        + "".join(path.read_text() for path in (home / "data" / "expertune" / "logs").iterdir())
    )
    assert SECRET not in written
    assert "The engine" not in written


@pytest.mark.chaos
def test_a_killed_command_takes_its_server_with_it(file: Path) -> None:
    with deployed(file, "--port", "0") as (process, said):
        assert httpx.get(f"{said['url']}/models").status_code == 200
        process.kill()
        process.wait(30)
        eventually(lambda: not _answers(f"{said['url']}/models"))


def _answers(url: str) -> bool:
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True
