"""EngineWorker: one engine process, reached over a socket with engine.contract.messages.

In: a command, requests. Out: results and events, or WorkerError with a failure class. The process
has its own group, dies with this one, and is killed when it stops answering. It must not know what
a study is.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from engine.contract import messages
from engine.errors import ProtocolError
from engine.types import FailureClass
from tuner.errors import WorkerError
from tuner.processes.start import start_child

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-m", "engine.worker")
OPERATION_LIMIT_S: Mapping[str, float] = {
    "describe": 600.0,
    "open": 1800.0,
    "configure": 1800.0,
    "measure": 900.0,
    "evaluate": 1800.0,
    "pack": 3600.0,
    "trace": 900.0,
    "calibrate": 900.0,
    "sensitivities": 3600.0,
    "serve": 600.0,
    "close": 5.0,
}

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class WorkerLimits:
    """When a silent worker counts as dead.

    heartbeat_s: no message at all, not even a heartbeat (the process is stuck); operation_s: no
    progress and no answer to a request (it is alive but stuck); 0 takes OPERATION_LIMIT_S by
    operation. grace_s: from the end of the socket to the end of the process.
    """

    heartbeat_s: float = 60.0
    operation_s: float = 0.0
    grace_s: float = 3.0

    def of(self, operation: str) -> float:
        """Seconds without progress that this operation may take."""
        if operation == "close":
            return OPERATION_LIMIT_S["close"]
        return self.operation_s or OPERATION_LIMIT_S.get(operation, 900.0)


@dataclass(frozen=True)
class _End:
    """The worker sends no more: its socket closed, or it wrote something that is not a message."""

    malformed: str | None = None


@dataclass
class EngineWorker:
    """One worker process: `start`, any number of `request`, `close`; also a context manager."""

    log_path: Path
    command: Sequence[str] = ENGINE_COMMAND
    limits: WorkerLimits = WorkerLimits()
    environment: Mapping[str, str] = field(default_factory=dict)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _socket: socket.socket | None = field(default=None, init=False)
    _inbox: queue.SimpleQueue[Event | _End] = field(init=False)
    _last_heard_s: float = field(default=0.0, init=False)
    _request_id: int = field(default=0, init=False)

    def __enter__(self) -> EngineWorker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether requests can be sent."""
        return self._process is not None

    @property
    def pid(self) -> int | None:
        """The process id, None when it is not running."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the process; raises WorkerError if the command cannot be run."""
        ours, theirs = socket.socketpair()
        arguments = [*self.command, "--fd", str(theirs.fileno())]
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self.log_path.open("ab") as log_file:
            self._process = start_child(
                arguments,
                self.environment,
                pass_fds=[theirs.fileno()],
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
            )
        self._socket = ours
        self._inbox = queue.SimpleQueue()
        self._last_heard_s = time.monotonic()
        threading.Thread(
            target=self._listen, args=(ours, self._inbox), name="worker", daemon=True
        ).start()
        log.debug("started worker %s: %s", self._process.pid, " ".join(arguments))

    def request(
        self,
        operation: str,
        on_event: OnEvent | None = None,
        limit_s: float | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Sends one request and waits for its answer.

        on_event is called with progress and token events; limit_s: seconds without progress, in
        place of the operation's own. Raises WorkerError; after timeout, crash, out_of_memory by the
        kernel and bad_output the process is gone (`alive` is False); after an error that the worker
        itself reported it stays, unless the worker says that it ends.
        """
        if self._process is None or self._socket is None:
            raise WorkerError("the engine worker is not running", "crash")
        self._request_id += 1
        message = {"id": self._request_id, "op": operation, **arguments}
        self._last_heard_s = time.monotonic()
        try:
            self._socket.sendall(messages.encode(message))
        except OSError:
            raise self._died(operation) from None
        return self._await_answer(operation, on_event, limit_s or self.limits.of(operation))

    def interrupt(self) -> None:
        """Asks a running request to finish (SIGTERM); its answer still comes."""
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """Asks the worker to end, then makes sure that its whole process group has."""
        if self._process is None:
            return
        with contextlib.suppress(WorkerError):
            self.request("close")
        self.kill()

    def kill(self) -> None:
        """Ends the process group at once and forgets the process."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size == 0:
                self.log_path.unlink()

    def _listen(self, connection: socket.socket, inbox: queue.SimpleQueue[Event | _End]) -> None:
        """Runs in a thread: reads lines, notes heartbeats, queues all other messages."""
        try:
            with connection.makefile("rb") as lines:
                for line in lines:
                    message = messages.decode(line)
                    self._last_heard_s = time.monotonic()
                    if message.get("event") != "heartbeat":
                        inbox.put(message)
            inbox.put(_End())
        except ProtocolError as error:
            inbox.put(_End(malformed=str(error)))
        except (OSError, ValueError):
            inbox.put(_End())

    def _await_answer(
        self, operation: str, on_event: OnEvent | None, limit_s: float
    ) -> dict[str, Any]:
        progress_s = time.monotonic()
        while True:
            try:
                message = self._inbox.get(timeout=0.25)
            except queue.Empty:
                self._check_silence(operation, progress_s, limit_s)
                continue
            if isinstance(message, _End):
                raise self._died(operation, message.malformed)
            if message.get("id") != self._request_id:
                continue
            if "ok" in message:
                return self._read_answer(operation, message)
            progress_s = time.monotonic()
            if on_event is not None:
                on_event(message)

    def _check_silence(self, operation: str, progress_s: float, limit_s: float) -> None:
        now = time.monotonic()
        if now - self._last_heard_s > self.limits.heartbeat_s:
            reason = f"gave no heartbeat for {self.limits.heartbeat_s:.0f} s"
        elif now - progress_s > limit_s:
            reason = f"made no progress for {limit_s:.0f} s"
        else:
            return
        self.kill()
        raise WorkerError(
            f"the engine worker {reason} in '{operation}' and was stopped{self._log_tail()}",
            "timeout",
        )

    def _read_answer(self, operation: str, message: Event) -> dict[str, Any]:
        if message["ok"] is True and isinstance(message.get("result"), dict):
            result: dict[str, Any] = message["result"]
            return result
        error = message.get("error") or {}
        if message["ok"] is False and (found := _reported(error)) is not None:
            if error.get("ends_worker"):
                self.kill()
            raise found
        self.kill()
        raise WorkerError(f"the answer to '{operation}' cannot be read: {message}", "bad_output")

    def _died(self, operation: str, malformed: str | None = None) -> WorkerError:
        process = self._process
        assert process is not None
        code: int | None = None
        if malformed is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=self.limits.grace_s)
        self.kill()
        failure, reason = _classify_end(code, malformed)
        return WorkerError(
            f"the engine worker {reason} during '{operation}'{self._log_tail()}", failure
        )

    def _log_tail(self, lines: int = 5) -> str:
        try:
            text = self.log_path.read_text(errors="replace", encoding="utf-8")[-4000:]
        except OSError:
            return ""
        tail = [line.strip() for line in text.splitlines() if line.strip()][-lines:]
        return f"; it last wrote: {' | '.join(tail)} (log: {self.log_path})" if tail else ""


def _reported(error: Any) -> WorkerError | None:
    """The error that a worker reports; None if it is not written as the protocol says."""
    if not isinstance(error, dict) or "message" not in error:
        return None
    failure, exit_code = error.get("class", "crash"), error.get("exit_code", 1)
    smallest = error.get("smallest_bytes")
    known = failure in get_args(FailureClass) and type(exit_code) is int
    if not known or type(smallest) not in (int, type(None)):
        return None
    return WorkerError(str(error["message"]), failure, exit_code, smallest)


def _classify_end(code: int | None, malformed: str | None) -> tuple[FailureClass, str]:
    if malformed is not None:
        return "bad_output", f"wrote what is no message ({malformed})"
    if code == -signal.SIGKILL:
        return "out_of_memory", "was killed by the system, most likely for lack of memory"
    if code is None:
        return "crash", "closed its connection"
    if code < 0:
        return "crash", f"died of {signal.Signals(-code).name}"
    return "crash", f"ended with code {code}"
