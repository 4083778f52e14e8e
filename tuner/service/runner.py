"""JobRunner: runs jobs from the queue, one after another, until the service closes.

One thread. The queue in the store is the only truth: this process may lose its state of a running
job at any time, and the next service continues from the queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tuner.definition.strict_yaml import read_strict
from tuner.errors import StoreError, TunerError
from tuner.service.child import start_study
from tuner.service.define import define_study, write_prompts
from tuner.service.requests import NewStudy
from tuner.service.settings import ServiceSettings
from tuner.store.service import Jobs, JobSnapshot, JobState

log = logging.getLogger(__name__)

CHECK_S = 0.5


class Child(Protocol):
    """A study's process."""

    def wait(self, timeout_s: float) -> int | None:
        """The exit code; None if it still runs after timeout_s."""

    def interrupt(self) -> None:
        """Asks it to end resumably."""

    def kill(self) -> None:
        """Ends it at once."""

    def error(self) -> str:
        """The reason why it failed, one sentence."""

    def close(self) -> None:
        """Releases its resources."""


Start = Callable[[JobSnapshot, ServiceSettings], Child]


@dataclass
class JobRunner:
    """Runs the jobs of this machine. `start`, then `close`, which leaves a running job resumable.

    jobs: for writing; view: the same, read-only, so that watching takes no lock from the study.
    """

    jobs: Jobs
    view: Jobs
    settings: ServiceSettings
    host: str
    start_child: Start = field(default_factory=lambda: start_job)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)
    _news: threading.Event = field(default_factory=threading.Event, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    @property
    def alive(self) -> bool:
        """Whether the thread runs jobs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Recovers jobs that a dead service left, then runs jobs."""
        self.jobs.recover(self.host)
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Wakes the thread for a new job or a request to stop one."""
        self._news.set()

    def close(self) -> None:
        """Interrupts the running study, queues its job again, ends the thread."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._closing.is_set():
            job = self._claim()
            if job is not None:
                self._run(job)
            else:
                self._rest(self.settings.poll_s)

    def _claim(self) -> JobSnapshot | None:
        try:
            return self.jobs.claim(self.host)
        except StoreError as error:  # locked or full: it may recover
            log.warning("the queue of jobs cannot be used: %s", error)
            return None

    def _run(self, job: JobSnapshot) -> None:
        log.info("job %d: study '%s' starts", job.id, job.study_name)
        try:
            child = self.start_child(job, self.settings)
        except (TunerError, OSError) as problem:
            self._settle(job, "FAILED", str(problem))
            return
        try:
            code, asked = self._watch(job, child)
            state, error = self._outcome(job, child, code, asked)
        finally:
            child.close()
        log.info("job %d: study '%s' ended with code %d", job.id, job.study_name, code)
        self._settle(job, state, error)

    def _watch(self, job: JobSnapshot, child: Child) -> tuple[int, bool]:
        """Waits for the child's end; returns the exit code, and whether this process ended it."""
        deadline_s = None
        while True:
            code = child.wait(CHECK_S)
            if code is not None:
                return code, deadline_s is not None
            if deadline_s is None and self._unwanted(job):
                child.interrupt()
                deadline_s = time.monotonic() + self.settings.grace_s
            elif deadline_s is not None and time.monotonic() > deadline_s:
                child.kill()

    def _unwanted(self, job: JobSnapshot) -> bool:
        return self._closing.is_set() or self._stopping(job)

    def _stopping(self, job: JobSnapshot) -> bool:
        try:
            return self.view.state(job.id) == "STOPPING"
        except StoreError as error:  # the study goes on; checked again soon
            log.warning("job %d: %s", job.id, error)
            return False

    def _outcome(
        self, job: JobSnapshot, child: Child, code: int, asked: bool
    ) -> tuple[JobState, str | None]:
        if code == 0:
            return "DONE", None
        if not asked:
            return "FAILED", child.error()
        return ("STOPPED" if self._stopping(job) else "QUEUED"), None

    def _settle(self, job: JobSnapshot, state: JobState, error: str | None) -> None:
        """Writes the outcome, retrying until it succeeds: otherwise the job would seem to run for
        ever."""
        while True:
            try:
                self.jobs.settle(job.id, state, error)
            except StoreError as problem:
                log.warning("job %d is %s, which cannot be written: %s", job.id, state, problem)
                if self._closing.is_set():
                    return  # the next service finds it RUNNING and continues the study
                self._rest(self.settings.poll_s)
            else:
                return

    def _rest(self, seconds: float) -> None:
        self._news.wait(seconds)
        self._news.clear()


def start_job(job: JobSnapshot, settings: ServiceSettings) -> Child:
    """Starts the child process of a job from its request; its folder is named by a number."""
    request = read_strict(NewStudy, dict(job.request), "what was asked")
    definition = define_study(request, settings)
    write_prompts(request, settings.folder)
    return start_study(definition, settings.storage, settings.folder / "jobs" / str(job.id))
