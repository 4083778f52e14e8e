"""A real worker process over a real socket: requests, failures as data, death with its parent."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine.contract.messages import decode, encode
from engine.model.checkpoint import Checkpoint
from tests.engine.conftest import TEXT
from tests.engine.evaluate.made import choice_task
from tests.fakes.hub import FIRST, MODEL, serving

WORKLOAD = {
    "name": "tiny",
    "prompts": [TEXT, TEXT[20:]],
    "continuations": [TEXT, TEXT],
    "chat": False,
    "prompt_tokens": 10,
    "output_tokens": 4,
    "sequences": 2,
}


class Client:
    """A bare client of the protocol."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        own, theirs = socket.socketpair()
        own.settimeout(120)
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments, "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
        )
        theirs.close()
        self.cache = Path(environment["XDG_CACHE_HOME"]) / "expertune"
        self._socket = own
        self._lines = own.makefile("rb")
        self.events: list[dict[str, Any]] = []
        self._id = 0

    def __call__(self, operation: str, **arguments: Any) -> dict[str, Any]:
        self._id += 1
        self._socket.sendall(encode({"id": self._id, "op": operation, **arguments}))
        while True:
            message = decode(self._lines.readline())
            if "event" in message:
                self.events.append(message)
                continue
            assert message["id"] == self._id
            return message

    def result(self, operation: str, **arguments: Any) -> dict[str, Any]:
        answer = self(operation, **arguments)
        assert answer["ok"], answer
        return dict(answer["result"])

    def hang_up(self) -> None:
        self._lines.close()
        self._socket.close()


def start(arguments: list[str], folder: Path, **settings: str) -> Client:
    return Client(arguments, {**os.environ, "XDG_CACHE_HOME": str(folder), **settings})


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = start(["engine.worker"], tmp_path_factory.mktemp("cache"))
    yield client
    client.hang_up()
    assert client.process.wait(timeout=30) is not None


@pytest.fixture(scope="module")
def opened(worker: Client, tiny_folder: Path) -> Client:
    result = worker.result("open", model=str(tiny_folder), device="cpu")
    assert result["facts"]["family"] == "qwen3_moe"
    assert result["runtime_bytes"] > 0
    return worker


def test_a_request_before_open_fails_without_ending_the_worker(worker: Client) -> None:
    answer = worker("measure", workload=WORKLOAD)
    assert "no model is open" in answer["error"]["message"]
    refused = worker("fly")
    assert "unknown operation" in refused["error"]["message"]


def test_configure_measure_and_reconfigure_in_place(opened: Client) -> None:
    for bits in (16, 4):
        result = opened.result(
            "configure", config={"precision": {"bits": bits}, "kv": {"max_tokens": 64}}
        )
        assert result["config"]["precision"]["bits"] == bits
        report = opened.result("measure", workload=WORKLOAD, repeats=1)
        assert report["metrics"]["output_tps"]["value"] > 0
        assert report["memory"]["external_peak_bytes"] < result["memory"]["total_bytes"]
    assert any(e.get("stage") == "pack" for e in opened.events)


def test_generated_text_streams(opened: Client) -> None:
    opened.result("configure", config={"kv": {"max_tokens": 64}})
    opened.events.clear()
    result = opened.result("generate", prompt=TEXT[:30], max_tokens=6)
    assert "".join(e["text"] for e in opened.events if e["event"] == "token") == result["text"]
    assert len(result["tokens"]) <= 6


def test_an_evaluation_is_followed_and_its_journal_goes_when_it_is_stored(
    opened: Client, tmp_path: Path
) -> None:
    opened.result("configure", config={"kv": {"max_tokens": 128}})
    opened.events.clear()
    options = {"limit": 4, "num_fewshot": 1, "apply_chat_template": True, "seed": 1}
    report = opened.result("evaluate", tasks=[choice_task(tmp_path)], **options)
    received = [(e["done"], e["total"]) for e in opened.events if e.get("stage") == "evaluate"]
    assert received[-1] == (12, 12)
    assert [len(one["values"]) for one in report["items"]] == [4, 4]
    folder = opened.cache / "evaluations"
    assert len(list(folder.iterdir())) == 1
    opened.result("discard_journal")
    assert not list(folder.iterdir())
    answer = opened("evaluate", tasks=["no_such_task"])
    assert answer["error"]["class"] == "task"


def test_parity_with_plain_transformers_is_reported(opened: Client) -> None:
    result = opened.result("parity", tokens=8)
    assert result["parity_max_abs_diff"] <= 1e-4 * result["parity_max_abs_logit"]


@pytest.mark.parametrize(
    ("config", "failure", "exit_code"),
    [
        ({"budget": {"vram_bytes": 1_000_000}}, "does_not_fit", 3),
        ({"cache": {"evicton": "lru"}}, "usage", 2),
        ({"precision": {"bits": 7}}, "usage", 2),
    ],
)
def test_a_bad_config_is_an_answer_with_its_class(
    opened: Client, config: dict[str, Any], failure: str, exit_code: int
) -> None:
    answer = opened("configure", config=config)
    assert not answer["ok"]
    assert answer["error"]["class"] == failure
    assert answer["error"]["exit_code"] == exit_code
    if failure == "does_not_fit":
        assert answer["error"]["smallest_bytes"] > 1_000_000


def test_an_unknown_model_is_an_answer(worker: Client) -> None:
    answer = worker("open", model="/no/such/model", device="cpu")
    assert answer["error"]["type"] == "NotAModelError"


def test_a_hub_id_opens_at_the_revision_that_is_asked_for(
    tiny_folder: Path, tmp_path: Path
) -> None:
    later = Path(shutil.copytree(tiny_folder, tmp_path / "later"))
    save_file({"other": torch.zeros(1)}, later / "model.safetensors")
    with serving(tiny_folder, later) as hub:
        settings = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "hub")}
        client = start(["engine.worker"], tmp_path, **settings)
        facts = client.result("open", model=MODEL, device="cpu", revision=FIRST)["facts"]
        client.hang_up()
        assert client.process.wait(timeout=30) == 0
    assert (facts["id"], facts["revision"]) == (MODEL, FIRST)
    assert facts["fingerprint"] == Checkpoint(tiny_folder).fingerprint


def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    client = start(["engine.worker"], tmp_path)
    client.hang_up()
    assert client.process.wait(timeout=30) == 0


def test_a_baseline_answers_like_a_worker(tiny_folder: Path, tmp_path: Path) -> None:
    client = start(["engine.baselines", "--baseline", "transformers resident"], tmp_path)
    client.result("open", model=str(tiny_folder), device="cpu")
    client.result("configure", config={})
    report = client.result("measure", workload=WORKLOAD, repeats=1)
    assert report["metrics"]["decode_tps"]["value"] > 0
    client.hang_up()
    deadline = time.monotonic() + 30
    while client.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert client.process.poll() == 0
