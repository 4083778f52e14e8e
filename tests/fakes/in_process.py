"""The fake engine without a process: a study's session asks it as it asks an EngineWorker.

What a process would do to itself (crash, kill, garbage) comes as the WorkerError that EngineWorker
makes of it; to hang or to freeze takes a true one, the fixture `processes`.
"""

import itertools
import json
import os
import shlex
import time
from collections.abc import Mapping
from typing import Any

from engine.contract import messages
from tests.fakes.fake_engine import FakeEngine, answer, faults_now
from tests.fakes.study import ENGINE
from tuner.engine_client import session
from tuner.engine_client.process import OnEvent, WorkerLimits, _classify_end
from tuner.engine_client.session import StartWorker
from tuner.errors import WorkerError

_NUMBERS = itertools.count(1)
# how the process would end: its code, or what it wrote that is no message
_ENDS = {"crash": (7, None), "kill": (-9, None), "garbage": (None, "this is not JSON")}


class InProcessWorker:
    """EngineWorker's interface. Each `start` is another process: it reads EXPERTUNE_FAKE anew and
    knows nothing of the one before."""

    def __init__(
        self, baseline: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._baseline = baseline
        self._environment = environment
        self._engine: FakeEngine | None = None

    @property
    def alive(self) -> bool:
        return self._engine is not None

    @property
    def pid(self) -> int | None:
        return os.getpid() if self.alive else None

    def start(self) -> None:
        self._knobs = json.loads(self._environment.get("EXPERTUNE_FAKE", "{}"))
        self._counts: dict[str, int] = {}
        self._engine = FakeEngine(self._baseline, f"{os.getpid()}-{next(_NUMBERS)}")
        self._engine.beyond_bytes = self._knobs.get("beyond_bytes", 0)
        self._engine.limited = self._knobs.get("limited", False)

    def request(
        self,
        operation: str,
        on_event: OnEvent | None = None,
        limit_s: float | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        if self._engine is None:
            raise WorkerError("the engine worker is not running", "crash")
        arguments = _carried(arguments)
        time.sleep(self._knobs.get("slow_s", 0.0))
        faults = faults_now(operation, self._knobs, self._counts)
        assert not {"hang", "freeze"} & set(faults), "only a process hangs: use `processes`"
        for code, malformed in (_ENDS[kind] for kind in faults if kind in _ENDS):
            self.kill()
            failure, reason = _classify_end(code, malformed)
            raise WorkerError(f"the engine worker {reason} during '{operation}'", failure)
        for said in map(_carried, answer(self._engine, operation, arguments, faults)):
            if "ok" not in said:
                if on_event is not None:
                    on_event(said)
            elif said["ok"]:
                return said["result"]
            else:
                error = said["error"]
                raise WorkerError(
                    error["message"], error["class"], error["exit_code"], error["smallest_bytes"]
                )
        raise AssertionError("no answer")

    def interrupt(self) -> None:
        """It never serves longer than a call."""

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._engine = None


def worker_factory(
    command: tuple[str, ...] | None = None, limits: WorkerLimits | None = None
) -> StartWorker:
    """As the session's own, but for the fake engine's command."""
    fake = tuple(shlex.split(ENGINE))
    if command is None or command[: len(fake)] != fake:
        return session.worker_factory(command, limits)
    baseline = command[-1] if "--baseline" in command else None
    return lambda: InProcessWorker(baseline)  # type: ignore[return-value]


def _carried(message: dict[str, Any]) -> dict[str, Any]:
    """As it arrives at the other end of a socket."""
    carried = messages.decode(messages.encode(message))
    del carried["schema"]
    return carried
