"""StudyProgress: keeps what a study does now and how long the rest will take, for its displays.

In: stages as the study and its engine session report them. Out: calls to displays, at each change
and once a second. It must not know what a display looks like.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from tuner.pareto.front import Front
from tuner.store.snapshots import TrialSnapshot
from tuner.study.pace import MEMBERS, Pace
from tuner.study.stages import Activity, Stage

# The stage of each operation of an engine, and of its progress events.
STAGES: Mapping[str, Stage] = {
    "open": "opening",
    "describe": "opening",
    "check_tasks": "checking",
    "profile": "profiling",
    "trace": "tracing",
    "configure": "configuring",
    "fill": "configuring",
    "pack": "packing",
    "warm_up": "warming_up",
    "measure": "measuring",
    "evaluate": "evaluating",
}


class Display(Protocol):
    """Shows a study's progress. Calls never overlap."""

    def opened(self) -> None:
        """Begins to show."""

    def stage(self, activity: Activity) -> None:
        """A stage began, or one of its steps ended."""

    def tick(self, activity: Activity) -> None:
        """A second has passed."""

    def trial_done(self, trial: TrialSnapshot, front: Front, activity: Activity) -> None:
        """A trial ended; the front includes it."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def closed(self) -> None:
        """Nothing more will come."""


Ticker = Callable[[Callable[[], None]], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def every_second(tick: Callable[[], None]) -> Iterator[None]:
    """Calls `tick` once a second while the block runs, in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(1.0):
            tick()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class StudyProgress:
    """The progress of one study in this process. clock: in seconds; ticker: calls a function once a
    second while its block runs."""

    def __init__(
        self,
        displays: Sequence[Display],
        clock: Callable[[], float] = time.monotonic,
        ticker: Ticker = every_second,
    ) -> None:
        self.pace = Pace()
        self._displays = list(displays)
        self._clock, self._ticker = clock, ticker
        self._lock = threading.RLock()
        self._begun_s = clock()
        self._stage: Stage | None = None
        self._stage_begun_s = self._begun_s
        self._done = self._first = 0
        self._total: int | None = None
        self._spent: dict[Stage, float] = defaultdict(float)
        self._trial: int | None = None
        self._trials_done = 0
        self._trials_planned: int | None = None
        self._repeats: tuple[int, int] | None = None
        self._evaluating: Stage = "evaluating"
        self._members = 0
        self._until_s: float | None = None

    def expect(
        self,
        trials: int,
        done: int,
        planned: Mapping[str, float],
        confirm_rounds: int = 0,
        timeout_s: float | None = None,
        likely: int | None = None,
    ) -> None:
        """Says how much there is to do, when the study begins. done: trials of earlier runs;
        planned: the plan's seconds by stage; likely: trials, if they may be fewer."""
        with self._lock:
            self.pace.trials = trials if likely is None else max(done, likely)
            self._trials_planned, self.pace.confirm_rounds = trials, confirm_rounds
            self.pace.planned = planned
            self._trials_done = done
            self._until_s = self._clock() + timeout_s if timeout_s else None
            self._spent.clear()

    def began(self, stage: Stage, done: int = 0, total: int | None = None) -> None:
        """A stage begins, or goes on with so many of its steps done."""
        with self._lock:
            if stage != self._stage:
                self._end_stage()
                self._stage, self._stage_begun_s, self._first = stage, self._clock(), done
            elif (done, total) == (self._done, self._total):
                return
            self._done, self._total = done, total
            self._show(lambda display, activity: display.stage(activity))

    def engine_said(self, operation: str, done: int, total: int | None) -> None:
        """An engine began an operation, or told of a step of it. While the front is confirmed, the
        repeats of that are the steps."""
        stage = STAGES.get(operation)
        with self._lock:
            if stage is None or self._stage == "confirming":
                return
            if stage == "measuring" and self._repeats is not None:
                done, total = done + self._repeats[0], self._repeats[1]
            self.began(self._evaluating if stage == "evaluating" else stage, done, total)

    def repeats(self, done: int, total: int) -> None:
        """The next measurement follows `done` repeats, of about `total`."""
        self._repeats = (done, total)

    @contextlib.contextmanager
    def evaluating_reference(self) -> Iterator[None]:
        """What is evaluated in this block is the 16-bit reference."""
        self._evaluating = "reference"
        try:
            yield
        finally:
            self._evaluating = "evaluating"

    def trial_began(self, number: int) -> None:
        """A trial begins."""
        with self._lock:
            self._trial = number
            if self._stage == "confirming":
                self.began("searching")

    def confirming(self, number: int, done: int, total: int) -> None:
        """A trial is confirmed, after `done` repeats of `total`."""
        with self._lock:
            self._end_stage()
            self._trial, self._stage = number, None
            self.began("confirming", done, total)

    def trial_done(self, trial: TrialSnapshot, front: Front, done: int) -> None:
        """A trial ended. One that never ran says nothing of the others' duration."""
        with self._lock:
            self._end_stage()
            if trial.configuration_id is not None:
                self.pace.trial_ended(self._spent)
            self._spent.clear()
            self._stage, self._trial, self._repeats = None, None, None
            self._trials_done, self._members = done, len(front.members)
            self.began("searching")
            self._show(lambda display, activity: display.trial_done(trial, front, activity))

    def note(self, text: str) -> None:
        """Shows a sentence that the user should know."""
        with self._lock:
            for display in self._displays:
                display.note(text)

    def tick(self) -> None:
        """Shows that time has passed."""
        with self._lock:
            self._show(lambda display, activity: display.tick(activity))

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Shows the progress while the block runs."""
        with contextlib.ExitStack() as undo:
            for display in self._displays:
                display.opened()
                undo.callback(display.closed)
            undo.enter_context(self._ticker(self.tick))
            yield

    @contextlib.contextmanager
    def also_to(self, display: Display) -> Iterator[None]:
        """Shows it there as well while the block runs."""
        with self._lock:
            self._displays.append(display)
        try:
            yield
        finally:
            with self._lock:
                self._displays.remove(display)

    def now(self) -> Activity | None:
        """What the study does at this moment; None before its first stage."""
        with self._lock:
            if self._stage is None:
                return None
            now_s = self._clock()
            stage_s = now_s - self._stage_begun_s
            trial_left_s, study_left_s = self._left(stage_s)
            return Activity(
                self._stage,
                self._done,
                self._total,
                stage_s,
                now_s - self._begun_s,
                self._trial,
                self._trials_done,
                self._trials_planned,
                trial_left_s,
                study_left_s,
            )

    def _left(self, stage_s: float) -> tuple[float | None, float | None]:
        """Seconds left of the trial and of the study."""
        pace, stage = self.pace, self._stage
        if stage is None or pace.trials is None:
            return None, None
        if stage == "confirming":
            left_s = pace.repeats_left_s((self._total or 0) - self._done, self._members)
            return None, None if left_s is None else self._within(max(0.0, left_s - stage_s))
        spent = {**self._spent, stage: self._spent[stage] + stage_s}
        running = self._trial is not None
        trial_left_s = pace.trial_left_s(spent, stage) if running else None
        trial_s = pace.trial_s
        if trial_s is None:
            return trial_left_s, None
        waiting = max(0, pace.trials - self._trials_done - running)
        members = self._members or MEMBERS
        confirming_s = pace.repeats_left_s(pace.confirm_rounds * members, members)
        left_s = waiting * trial_s + (trial_left_s or 0.0) + (confirming_s or 0.0)
        return trial_left_s, self._within(left_s + pace.preparing_left_s())

    def _within(self, left_s: float) -> float:
        """No more than --timeout leaves."""
        if self._until_s is None:
            return left_s
        return min(left_s, max(0.0, self._until_s - self._clock()))

    def _end_stage(self) -> None:
        if self._stage is None:
            return
        seconds = self._clock() - self._stage_begun_s
        self._spent[self._stage] += seconds
        self.pace.stage_ended(self._stage, seconds, self._done - self._first)

    def _show(self, call: Callable[[Display, Activity], None]) -> None:
        activity = self.now()
        if activity is not None:
            for display in self._displays:
                call(display, activity)
