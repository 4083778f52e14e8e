"""Targets: the protocol between the tuner and a worker, from both ends."""

from __future__ import annotations

import contextlib
import io
import json
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.messages import decode, encode
from engine.contract.requests import TaskOptions, Workload
from engine.errors import NotAModelError
from engine.worker.loop import Connection, serve
from engine.worker.operations import Operations
from tests.fakes.fake_engine import FakeEngine
from tests.fuzz.documents import Pairs, Tree, read_json, write, write_bytes
from tests.fuzz.oracle import Arena, Run
from tests.fuzz.target import Shape, Target
from tuner.engine_client.process import EngineWorker, WorkerLimits
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError

NOBODY = 1 << 29  # no process has this id
WORK = Workload("w", ("one", "two"), prompt_tokens=8, output_tokens=8, sequences=2)


def _read_lines(data: bytes) -> Tree:
    return [read_json(line) for line in data.splitlines()]


def _write_lines(tree: Tree) -> bytes:
    lines = tree if isinstance(tree, list) and not isinstance(tree, Pairs) else [tree]
    return b"".join(write(line).encode("utf-8", "surrogatepass") + b"\n" for line in lines)


LINES = Shape(_read_lines, _write_lines)


class _Nowhere(Operations):
    """The worker's operations, where there is no model and the machine is not measured."""

    def _located(self, model: str, trust_remote_code: bool, revision: str | None) -> Any:
        raise NotAModelError(f"there is no model {model!r:.50}")

    def open(self, model: str, *_: Any, **__: Any) -> dict[str, Any]:
        self._located(model, False, None)
        return {}

    def profile(self) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def _requests(place: Arena) -> Iterator[Run]:
    """A worker is sent these bytes; every answer is a message, and it ends with the socket."""

    def run(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        answers: list[bytes] = []

        def talk() -> None:
            with contextlib.suppress(OSError):
                ours.sendall(data)
                ours.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError), ours.makefile("rb") as lines:  # reset: much was left
                answers.extend(lines)

        peer = threading.Thread(target=talk)
        peer.start()
        try:
            with theirs, contextlib.redirect_stderr(io.StringIO()):
                connection = Connection(theirs)
                serve(connection, lambda emit: _Nowhere(place.cache, emit))
                connection._lines.close()
        finally:
            peer.join(timeout=20)
            ours.close()
        assert not peer.is_alive(), "the socket is closed at the end"
        for answer in map(decode, answers):
            assert answer.get("event") == "heartbeat" or isinstance(answer["ok"], bool), answer

    yield run


class _Process:
    """A process that is there no more."""

    pid = NOBODY

    def wait(self, timeout: float | None = None) -> int:
        return 0


class _Deaf(EngineWorker):
    """A worker whose process says what it is told to, and then closes its connection."""

    said: bytes = b""

    def start(self) -> None:
        ours, self.theirs = socket.socketpair()
        self._process = _Process()  # type: ignore[assignment]
        self._socket = ours
        self._inbox = queue.SimpleQueue()
        self._last_heard_s = float("inf")
        self.listener = threading.Thread(target=self._listen, args=(ours, self._inbox), daemon=True)
        self.listener.start()
        with contextlib.suppress(OSError):
            self.theirs.sendall(self.said)
        self.theirs.close()


@contextlib.contextmanager
def _answers(place: Arena) -> Iterator[Run]:
    """The tuner reads what a worker answers to its first request."""
    log = place.cache / "worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)

    def run(data: bytes) -> None:
        worker = _Deaf(log, limits=WorkerLimits(heartbeat_s=5.0, operation_s=5.0))
        worker.said = data
        worker.start()
        try:
            session = EngineSession("m", start_worker=lambda: worker)
            session._worker = worker
            session.describe()
        finally:
            worker.kill()
            worker.listener.join(timeout=5)

    yield run


class _Told:
    """A worker whose results are told."""

    alive, pid = True, NOBODY

    def __init__(self, results: dict[str, Any]) -> None:
        self._results = results

    def start(self) -> None:
        pass

    def kill(self) -> None:
        pass

    close = interrupt = kill

    def request(
        self, operation: str, on_event: Any = None, limit_s: Any = None, **_: Any
    ) -> dict[str, Any]:
        found = self._results.get(operation, {})
        events = found.get("events", []) if isinstance(found, dict) else []
        for event in events if on_event is not None and isinstance(events, list) else ():
            if isinstance(event, dict):
                on_event(event)
        return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def _results(place: Arena) -> Iterator[Run]:
    """The session takes every kind of result."""
    config = EngineConfig()

    def run(data: bytes) -> None:
        try:
            results = json.loads(data)
        except (ValueError, RecursionError):
            return
        worker: Any = _Told(results if isinstance(results, dict) else {})
        for ask in (
            lambda session: session.describe(),
            lambda session: session.configure(config),
            lambda session: session.facts and session.measure(WORK),
            lambda session: session.facts and session.evaluate(("a",), TaskOptions()),
            lambda session: session.check_tasks(["a"], TaskOptions()),
            lambda session: session.profile(),
            lambda session: session.calibrate(config, WORK, [4]),
        ):
            with contextlib.suppress(WorkerError):
                ask(EngineSession("m", start_worker=lambda: worker))

    yield run


def _request_lines() -> bytes:
    config = EngineConfig().to_dict()
    model = {"model": "m", "device": "cpu", "trust_remote_code": False}
    requests: list[dict[str, Any]] = [
        {"op": "device", "device": "cpu"},
        {"op": "describe", **model, "revision": "main"},
        {"op": "open", **model},
        {"op": "configure", "config": {"precision": config["precision"]}},
        {"op": "measure", "workload": WORK.to_json(), "repeats": 1, "warm_up": True, "seed": 0},
        {"op": "check_tasks", **model, "tasks": ["a"], **TaskOptions().to_json()},
        {"op": "evaluate", "tasks": ["a"], "reference": True, **TaskOptions().to_json()},
        {"op": "discard_journal"},
        {"op": "generate", "prompt": "a", "chat": False, "max_tokens": 4, "temperature": 0.5},
        {"op": "pack", "bits": 4, "group_size": 64},
        {"op": "divergence", "text": "a b", "tokens": 2, "reference": True},
        {"op": "trace", "path": "t.npz", "workload": WORK.to_json(), "repeats": 1, "seed": 0},
        {"op": "calibrate", "config": config, "workload": WORK.to_json(), "bits": [16, 4]},
        {"op": "sensitivities", "config": {}, "workload": {}, "bits": [4], "tokens": 8},
        {"op": "parity", "tokens": 2},
        {"op": "close"},
    ]
    return b"".join(encode({"id": n, **one}) for n, one in enumerate(requests, 1))


def _told_results() -> dict[str, Any]:
    """One right result for each operation, of the fake engine."""
    engine = FakeEngine(None)
    found: dict[str, Any] = {"describe": engine.describe("m", "cpu", False)}
    found["open"] = engine.open("m", "cpu", False)
    found["configure"] = engine.configure(EngineConfig().to_dict())
    found["measure"] = engine.measure(WORK.to_json(), 1, True, 0)
    found["evaluate"] = engine.evaluate(["a_choice"], False, **TaskOptions(limit=2).to_json())
    found["check_tasks"] = engine.check_tasks(["a64"])
    found["profile"] = engine.profile()
    found["measure"]["events"] = [{"event": "progress", "stage": "measure", "done": 1, "total": 2}]
    return found


def _answer_lines() -> list[bytes]:
    facts = _told_results()["describe"]
    right = encode({"id": 1, "ok": True, "result": facts})
    beat = encode({"event": "heartbeat", "rss_bytes": 5})
    steps = encode({"id": 1, "event": "progress", "stage": "read", "done": 1, "total": 2})
    error = {"class": "model", "type": "X", "message": "no", "exit_code": 1, "smallest_bytes": None}
    refused = encode({"id": 1, "ok": False, "error": {**error, "ends_worker": False}})
    return [beat + steps + right, beat + refused]


TARGETS = (
    Target("worker_requests", _requests, lambda: [_request_lines()], LINES, cases=60),
    Target("worker_answers", _answers, _answer_lines, LINES, cases=60),
    Target(
        "worker_results", _results, lambda: [json.dumps(_told_results()).encode()],
        Shape(read_json, write_bytes), cases=60,
    ),
)  # fmt: skip
