"""A real server process: it says where it listens, drains when told to, ends with its parent."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.serve.made import eventually
from tests.engine.worker.test_worker import WORKLOAD, Client, start

CONFIG = {"kv": {"max_tokens": 256}, "batch": {"count": 2}, "compute": {"dtype": "float32"}}


@pytest.fixture(scope="module")
def process(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = start(["engine.serve"], tmp_path_factory.mktemp("cache"))
    client.result("open", model=str(tiny_folder), device="cpu")
    client.result("configure", config=CONFIG)
    yield client
    client.hang_up()
    assert client.process.wait(timeout=30) == 0


class Service:
    """A running `serve` request."""

    def __init__(self, client: Client, **options: Any) -> None:
        client.events.clear()
        self._client = client
        self._answers: list[dict[str, Any]] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(client("serve", name="tiny", port=0, **options))
        )
        self._thread.start()
        eventually(lambda: bool(self.received("ready")))
        self.url = "http://127.0.0.1:{port}".format(**self.received("ready")[0])

    def received(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self._client.events if one["event"] == event]

    def stop(self) -> dict[str, Any]:
        self._client.process.send_signal(signal.SIGTERM)
        self._thread.join(60)
        (answer,) = self._answers
        assert answer["ok"], answer
        return dict(answer["result"])


def test_it_measures_with_the_routing_of_the_text(process: Client) -> None:
    report = process.result("measure", workload=WORKLOAD, repeats=1)
    assert report["metrics"]["output_tps"]["value"] > 0
    routing = report["environment"]["routing"]
    assert [round(sum(row), 2) for row in routing] == [1.0] * 3


def test_what_runs_and_waits_is_finished_before_it_stops(process: Client) -> None:
    service = Service(process)
    answers: list[str] = []

    def read() -> None:
        body = {"model": "tiny", "prompt": "The engine", "max_tokens": 60, "stream": True}
        answers.append(httpx.post(f"{service.url}/v1/completions", json=body, timeout=60).text)

    threads = [threading.Thread(target=read) for _ in range(5)]
    for thread in threads:
        thread.start()
    health = httpx.get(f"{service.url}/healthz").json()
    eventually(lambda: _received(service) == 5)
    totals = service.stop()
    for thread in threads:
        thread.join(60)
    assert health["status"] == "ok"
    assert all(answer.strip().endswith("data: [DONE]") for answer in answers)
    assert (totals["finished"], totals["cancelled"], totals["failed"]) == (5, 0, 0)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/healthz")
    (window,) = service.received("telemetry")
    assert window["sequences"]["finished"] == 5
    assert 0 < window["expert_hit_rate"] <= 1
    assert len(window["routing"]) == 3
    assert window["tpot_ms"] > 0


def test_requests_that_outlast_the_drain_are_cut_off(process: Client) -> None:
    service = Service(process, drain_s=0)
    threads = [threading.Thread(target=_long, args=(service.url,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: _received(service) == 16)
    totals = service.stop()
    for thread in threads:
        thread.join(60)
    assert totals["cancelled"] + totals["failed"] > 0
    assert totals["finished"] + totals["cancelled"] + totals["failed"] == 16


def test_windows_of_telemetry_come_while_it_serves(process: Client) -> None:
    service = Service(process, telemetry_s=0.2)
    eventually(lambda: len(service.received("telemetry")) >= 2)
    service.stop()
    first = service.received("telemetry")[0]
    assert (first["output_tokens"], first["routing"], first["tpot_ms"]) == (0, None, None)


def test_a_taken_address_is_said_and_the_process_stays(process: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = process("serve", name="tiny", port=taken.getsockname()[1])
    assert "cannot listen on 127.0.0.1" in answer["error"]["message"]
    assert "--port" in answer["error"]["message"]
    assert "unknown operation 'evaluate'" in process("evaluate")["error"]["message"]


def test_a_config_that_knows_its_future_is_not_served(process: Client) -> None:
    answer = process("configure", config={**CONFIG, "cache": {"eviction": "belady"}})
    assert (answer["error"]["class"], answer["error"]["exit_code"]) == ("usage", 2)
    assert "nobody knows of what clients ask" in answer["error"]["message"]
    process.result("configure", config=CONFIG)


def _received(service: Service) -> int:
    """Sequences that run, wait or have ended: a fast machine may have answered the first before the
    last has come."""
    answer = httpx.get(f"{service.url}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    names = ("expertune_sequences", "expertune_running", "expertune_queue_length")
    return int(sum(sample.value for name in names for sample in families[name].samples))


def _long(url: str) -> None:
    body = {"model": "tiny", "prompt": "The engine", "max_tokens": 250, "n": 8, "stream": True}
    with contextlib.suppress(httpx.RemoteProtocolError):  # cut off in the middle
        httpx.post(f"{url}/v1/completions", json=body, timeout=60)
