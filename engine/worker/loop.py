"""Answers the tuner's requests on a socket, one by one, and sends heartbeats meanwhile."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any, Protocol

import torch

from engine.contract.messages import decode, encode
from engine.device import process_memory
from engine.errors import EngineError, InfeasibleError, ProtocolError
from engine.types import FailureClass
from engine.worker.lost_context import lost_context

HEARTBEAT_S = 1.0
Emit = Callable[[dict[str, Any]], None]


class Connection:
    """The tuner's socket: lines in, messages out, from several threads."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._lines = channel.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message. A dead parent ends this process at once."""
        try:
            with self._lock:
                self._channel.sendall(encode(message))
        except OSError:
            os._exit(1)

    def receive(self) -> dict[str, Any] | None:
        """The next request, None if the parent closed the socket."""
        line = self._lines.readline()
        return decode(line) if line else None


class Runner(Protocol):
    """Runs one operation; engine.worker.operations is one, a baseline is another."""

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The operation's result. Raises EngineError or any other exception."""


def serve(connection: Connection, make_runner: Callable[[Emit], Runner]) -> None:
    """Answer requests one by one, until `close`, an error that loses the accelerator's context, or
    a line that is no message, which is answered too.

    make_runner: called with the function that sends a request's events.
    """
    stop = threading.Event()
    threading.Thread(target=_beat, args=(connection, stop), daemon=True).start()
    current: dict[str, Any] = {"id": None}
    runner = make_runner(lambda event: connection.send({"id": current["id"], **event}))
    try:
        while (request := connection.receive()) is not None:
            current["id"] = request.get("id")
            arguments = {k: v for k, v in request.items() if k not in ("schema", "id", "op")}
            answer = _answer(runner, str(request.get("op")), arguments)
            connection.send({"id": current["id"], **answer})
            if request.get("op") == "close" or answer.get("error", {}).get("ends_worker"):
                break
    except ProtocolError as error:
        connection.send({"id": None, "ok": False, "error": _describe(error, ends_worker=True)})
    finally:
        stop.set()


def _answer(runner: Runner, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"ok": True, "result": runner.run(operation, arguments)}
    except Exception as error:  # noqa: BLE001 (the trial boundary: a failed trial is data)
        return {"ok": False, "error": _describe(error)}


def _describe(error: Exception, *, ends_worker: bool = False) -> dict[str, Any]:
    """The error of an answer; `ends_worker` if this process can compute no more."""
    message = str(error) or type(error).__name__
    failure: FailureClass = "crash"
    exit_code, smallest = 1, None
    lost = lost_context(error)
    if lost is not None:
        message = f"the accelerator's context was lost ({lost}), so this worker ends"
    elif isinstance(error, EngineError):
        failure, exit_code = error.failure, error.exit_code
        smallest = error.smallest_bytes if isinstance(error, InfeasibleError) else None
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        failure = "out_of_memory"
    if lost is not None or not isinstance(error, (EngineError, MemoryError)):
        traceback.print_exception(error)
    return {
        "class": failure,
        "type": type(error).__name__,
        "message": message,
        "exit_code": exit_code,
        "smallest_bytes": smallest,
        "ends_worker": ends_worker or lost is not None,
    }


def _beat(connection: Connection, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        connection.send({"event": "heartbeat", "rss_bytes": process_memory.resident_bytes()})
