"""EngineSession: keeps a model open in a worker, and reopens it in a new one if that dies.

In: what to open. Out: model facts, resolved configs, reports. It hides that processes die, but not
that a request failed: every failure is a WorkerError.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.config.settings import EngineConfig
from engine.contract.report import QualityReport, Report
from engine.contract.requests import TaskNeed, TaskOptions, Workload
from engine.derived.file import CONTENT_ERRORS
from engine.errors import ConfigError
from engine.facts.machine import MachineProfile
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings
from engine.memory.plan import Resolved
from tuner.engine_client.answers import (
    read_configured,
    read_device,
    read_opened,
    read_profile,
    read_progress,
    read_quality,
    read_report,
)
from tuner.engine_client.card_lock import card_section
from tuner.engine_client.process import EngineWorker, Event, OnEvent, WorkerLimits
from tuner.engine_client.timing_lock import timed_section
from tuner.errors import WorkerError
from tuner.folders import cache_folder, data_folder

log = logging.getLogger(__name__)

StartWorker = Callable[[], EngineWorker]
# operation or stage of one, steps done, steps in all if they are counted
Watch = Callable[[str, int, int | None], None]
T = TypeVar("T")


@dataclass
class EngineSession:
    """One model on one device.

    model: a folder or a Hugging Face id; device: as `--device`; start_worker: makes a worker that
    is not started yet; busy_s: seconds that engines worked, without waiting for the timing lock;
    evaluated_s: of the latest evaluation; of the opened device: context_bytes of its driver, None
    if unknown, its card's UUID, and decodes_together as in ModelTimings; revision: of a hub id,
    None for its latest, which the first opening pins, so that a new worker never runs another;
    watch: is told what the engine begins, and each step of it. Leaving it as a context ends the
    worker.
    """

    model: str
    device: str = "auto"
    trust_remote_code: bool = False
    start_worker: StartWorker = field(default_factory=lambda: worker_factory())
    revision: str | None = None
    watch: Watch = field(default=lambda *_: None)
    _worker: EngineWorker | None = field(default=None, init=False)
    _facts: ModelFacts | None = field(default=None, init=False)
    _configurations: int = field(default=0, init=False)
    _tainted: bool = field(default=False, init=False)
    _is_open: bool = field(default=False, init=False)
    hardware: dict[str, Any] = field(default_factory=dict, init=False)
    runtime_bytes: int = field(default=0, init=False)
    opened_device: str = field(default="cpu", init=False)
    context_bytes: int | None = field(default=None, init=False)
    card: str | None = field(default=None, init=False)
    decodes_together: bool = field(default=False, init=False)
    busy_s: float = field(default=0.0, init=False)
    evaluated_s: float = field(default=0.0, init=False)

    def __enter__(self) -> EngineSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def close(self) -> None:
        """Ends the worker; the next request would start another."""
        if self._worker is not None:
            self._worker.close()

    def kill(self) -> None:
        """Ends the worker at once, in the middle of whatever it does."""
        if self._worker is not None:
            self._worker.kill()

    @property
    def fresh(self) -> bool:
        """Whether the worker has done nothing but run one configuration since it was opened."""
        return self._configurations <= 1 and not self._tainted

    def refresh(self) -> None:
        """Ends a worker that did more than measure: leftover memory would be counted."""
        if self._tainted:
            self.close()

    @property
    def facts(self) -> ModelFacts:
        """The model's facts; opens it on first use."""
        self._open()
        if self._facts is None:
            raise WorkerError("the engine said nothing of the model", "bad_output")
        return self._facts

    def describe_device(self) -> dict[str, Any]:
        """What the device's name opens on this machine: name, torch, built_for."""
        return self._ready().request("device", device=self.device)

    def describe(self) -> ModelFacts:
        """The model's facts, read before its weights are fetched or loaded."""
        if self._facts is None:
            result = self._ask_first("describe")
            self._tainted = True
            self._take_facts(result)
            self._take_device(result)
        return self.facts if self._facts is None else self._facts

    def configure(self, config: EngineConfig) -> Resolved:
        """Reconfigures in place; WorkerError with does_not_fit when the budget is too small."""
        worker = self._open()
        self._configurations += 1
        self.watch("configure", 0, None)
        with self._turn(timed=False), self._busy():
            result = worker.request(
                "configure", on_event=self._watched(None), config=config.to_dict()
            )
        return self._checked(lambda: read_configured(result))

    def measure(
        self,
        workload: Workload,
        repeats: int = 1,
        warm_up: bool = True,
        seed: int = 0,
        on_event: OnEvent | None = None,
        limit_s: float | None = None,
    ) -> Report:
        """Measures the current config once this process holds the timing lock; a report with
        impossible figures is bad_output.

        limit_s: a repeat that takes longer is a timeout, and ends the worker.
        """
        self.watch("warm_up" if warm_up else "measure", 0, None if warm_up else repeats)
        with self._turn(), self._busy():
            result = self._live().request(
                "measure",
                on_event=self._watched(on_event),
                limit_s=limit_s,
                workload=workload.to_json(),
                repeats=repeats,
                warm_up=warm_up,
                seed=seed,
            )
        return self._checked(lambda: read_report(result))

    def serve(self, on_event: OnEvent, **options: Any) -> dict[str, Any]:
        """Serves the current config until `interrupt`; needs a worker that can (engine.serve)."""
        return self._live().request("serve", on_event=on_event, **options)

    def interrupt(self) -> None:
        """Asks a running `serve` to end: it drains, then answers."""
        if self._worker is not None:
            self._worker.interrupt()

    def check_tasks(self, tasks: Sequence[str], options: TaskOptions) -> tuple[TaskNeed, ...]:
        """Loads lm-eval tasks with their data, and returns what each needs; reads no weights.

        Raises WorkerError with the class `task` for whatever would fail in every evaluation.
        """
        result = self._ask_first("check_tasks", tasks=list(tasks), **options.to_json())
        self._tainted = True
        return self._checked(lambda: tuple(TaskNeed.from_json(one) for one in result["needs"]))

    def evaluate(
        self,
        tasks: tuple[str, ...],
        options: TaskOptions,
        reference: bool = False,
        on_event: OnEvent | None = None,
    ) -> QualityReport:
        """Runs lm-eval tasks on the current config."""
        self._tainted = True
        self.watch("evaluate", 0, None)
        before_s = self.busy_s
        with self._turn(timed=False), self._busy():
            result = self._live().request(
                "evaluate",
                on_event=self._watched(on_event),
                tasks=list(tasks),
                reference=reference,
                **options.to_json(),
            )
        self.evaluated_s = self.busy_s - before_s
        return self._checked(lambda: read_quality(result))

    def discard_journal(self) -> None:
        """Drops the journal of the last evaluation, which is stored and need not be resumed."""
        with contextlib.suppress(WorkerError):  # a leftover journal does no harm
            self._live().request("discard_journal")

    def profile(self) -> MachineProfile:
        """Measures this machine's speeds, with this device."""
        worker = self._ready()
        self.watch("profile", 0, None)
        with self._turn(), self._busy():
            result = worker.request("profile", device=self.device)
        self._tainted = True
        return self._checked(lambda: read_profile(result))

    def calibrate(
        self,
        config: EngineConfig,
        workload: Workload,
        bits: Sequence[int],
        on_event: OnEvent | None = None,
    ) -> ModelTimings:
        """Times the parts of this model's passes."""
        worker = self._open()
        with self._turn(), self._busy():
            result = worker.request(
                "calibrate",
                on_event=on_event,
                config=config.to_dict(),
                workload=workload.to_json(),
                bits=list(bits),
            )
        return self._checked(lambda: ModelTimings.from_json(result))

    def request(
        self, operation: str, on_event: OnEvent | None = None, **arguments: Any
    ) -> dict[str, Any]:
        """Runs any other operation on the open model."""
        worker = self._open()
        self.watch(operation, 0, None)
        with self._turn(timed=False), self._busy():
            return worker.request(operation, on_event=self._watched(on_event), **arguments)

    def _watched(self, on_event: OnEvent | None) -> OnEvent:
        """Also tells `watch` of progress."""

        def hear(event: Event) -> None:
            if event.get("event") == "progress":
                self.watch(*self._checked(lambda: read_progress(event)))
            if on_event is not None:
                on_event(event)

        return hear

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.busy_s += time.monotonic() - started

    def _turn(self, *, timed: bool = True) -> contextlib.AbstractContextManager[None]:
        """Keeps others off a card that computes, or off the CPU while something is timed there."""
        here = cache_folder(), self.opened_device
        if self.card is not None:
            return card_section(*here, self.card)
        return timed_section(*here) if timed else contextlib.nullcontext()

    def _live(self) -> EngineWorker:
        if self._worker is None or not self._worker.alive:
            raise WorkerError("nothing is configured: the engine worker was replaced", "crash")
        return self._worker

    def _ready(self) -> EngineWorker:
        """A running worker, with or without the model open."""
        if self._worker is not None and self._worker.alive:
            return self._worker
        worker = self._worker = self.start_worker()
        with contextlib.ExitStack() as undo:
            undo.callback(worker.kill)
            worker.start()
            undo.pop_all()
        self._configurations, self._tainted, self._is_open = 0, False, False
        return worker

    def _open(self) -> EngineWorker:
        worker = self._ready()
        if self._is_open:
            return worker
        result = self._ask_first("open")
        self._take_facts(result)
        worker = self._live()
        self._is_open = True
        opened = self._checked(lambda: read_opened(result))
        self.hardware, self.runtime_bytes, self.decodes_together = opened
        self._take_device(result)
        return worker

    def _ask_first(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Runs an operation that needs no earlier state, such as opening the model, so that a
        worker that dies is replaced once."""
        self.watch(operation, 0, None)
        worker = self._ready()
        try:
            return worker.request(operation, **self._named(), **arguments)
        except WorkerError as error:
            died = not worker.alive and error.failure != "timeout"
            worker.kill()
            if not died:
                raise
            log.warning("%s: another one is tried", error)
        worker = self._ready()
        with contextlib.ExitStack() as undo:
            undo.callback(worker.kill)
            result = worker.request(operation, **self._named(), **arguments)
            undo.pop_all()
        return result

    def _named(self) -> dict[str, Any]:
        """The arguments that identify this model, with the pinned revision once there is one."""
        return {
            "model": self.model,
            "device": self.device,
            "trust_remote_code": self.trust_remote_code,
            **({"revision": self.revision} if self.revision else {}),
        }

    def _take_facts(self, result: dict[str, Any]) -> None:
        if "facts" in result:  # a baseline engine reports none
            self._facts = self._checked(lambda: ModelFacts.from_json(result["facts"]))
            self.revision = None if self._facts.revision == "local" else self._facts.revision

    def _take_device(self, result: dict[str, Any]) -> None:
        found = self._checked(lambda: read_device(result))
        self.opened_device, self.context_bytes, self.card = found

    def _checked(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (*CONTENT_ERRORS, ConfigError) as error:
            if self._worker is not None:
                self._worker.kill()
            raise WorkerError(
                f"the engine's figures cannot be used: {error}", "bad_output"
            ) from None


def worker_factory(
    command: tuple[str, ...] | None = None, limits: WorkerLimits | None = None
) -> StartWorker:
    """Returns a function that makes workers, each with its own log file in the data folder."""

    def build() -> EngineWorker:
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{time.monotonic_ns() % 1_000_000:06d}"
        worker = EngineWorker(_new_log(data_folder() / "logs", stamp))
        if command is not None:
            worker = replace(worker, command=command)
        return worker if limits is None else replace(worker, limits=limits)

    return build


def _new_log(folder: Path, stamp: str, keep: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("worker-*.log"))[:-keep]:
        old.unlink(missing_ok=True)
    return folder / f"worker-{stamp}.log"
