"""The progress display of a running study, on stderr: one live line on a terminal, else plain
lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tuner.pareto.front import Front
from tuner.store.snapshots import TrialSnapshot


class Progress(Protocol):
    """Is called with a study's progress."""

    def notify(self, words: str) -> None:
        """Reports the current activity."""

    def trial_done(self, trial: TrialSnapshot, front: Front, done: int, planned: int) -> None:
        """Reports that a trial ended."""

    def showing(self) -> contextlib.AbstractContextManager[None]:
        """Shows the progress while the block runs."""


@dataclass
class LineProgress:
    """Prints one line per trial; for logs, pipes and scripts."""

    console: Console
    _clock: _Clock = field(default_factory=lambda: _Clock())

    def notify(self, words: str) -> None:
        """Does nothing: a log needs no heartbeat."""

    def trial_done(self, trial: TrialSnapshot, front: Front, done: int, planned: int) -> None:
        """Prints the trial, the front and the time left."""
        self._clock.done(trial)
        self.console.print(_trial_line(trial), highlight=False, markup=False, soft_wrap=True)
        state = _study_line(front, done, planned, self._clock)
        self.console.print(f"  {state}", highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Does nothing: lines need no frame."""
        yield


@dataclass
class LiveProgress:
    """Scrolls finished trials and keeps the study's state below them."""

    console: Console
    _clock: _Clock = field(default_factory=lambda: _Clock())
    _live: Live | None = field(default=None, init=False)
    _doing: str = field(default="", init=False)
    _state: str = field(default="first trial", init=False)

    def notify(self, words: str) -> None:
        """Shows the activity beside the state."""
        self._doing = words
        self._refresh()

    def trial_done(self, trial: TrialSnapshot, front: Front, done: int, planned: int) -> None:
        """Prints the trial and updates the state."""
        self._clock.done(trial)
        self._state = _study_line(front, done, planned, self._clock)
        self.console.print(_trial_line(trial), highlight=False, markup=False)
        self._refresh()

    @contextlib.contextmanager
    def showing(self) -> Iterator[None]:
        """Keeps the last line live."""
        with Live(Text(self._state), console=self.console, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.update(Text(f"{self._state} · {self._doing}"))


def choose_progress(quiet: bool = False) -> Progress:
    """Chooses the live display on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, quiet=quiet)
    if sys.stderr.isatty() and not quiet:
        return LiveProgress(console)
    return LineProgress(console)


@dataclass
class _Clock:
    """Estimates the time left from the trials so far."""

    spent_s: list[float] = field(default_factory=list)

    def done(self, trial: TrialSnapshot) -> None:
        """Records an ended trial; one that never ran, or during which the clock was set back, is
        ignored."""
        if trial.configuration_id is not None and trial.finished is not None:
            seconds = (trial.finished - trial.started).total_seconds()
            self.spent_s += [seconds] if seconds >= 0 else []

    def left(self, trials: int) -> str:
        """The rough time left, in words."""
        if not self.spent_s or trials <= 0:
            return "unknown" if trials > 0 else "none"
        seconds = trials * sum(self.spent_s) / len(self.spent_s)
        return format_duration(seconds)


def format_duration(seconds: float) -> str:
    """Formats seconds for users: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _trial_line(trial: TrialSnapshot) -> str:
    params = " ".join(f"{name.split('.')[-1]}={value}" for name, value in trial.params.items())
    if trial.state == "COMPLETE":
        figures = " ".join(f"{name} {value:.4g}" for name, value in trial.scores.items())
        limits = "" if trial.feasible else " (outside the limits)"
        return f"trial {trial.number}: {figures}{limits} [{params}]"
    why = f" ({trial.failure})" if trial.failure else ""
    return f"trial {trial.number}: {trial.state}{why} {trial.reason} [{params}]"


def _study_line(front: Front, done: int, planned: int, clock: _Clock) -> str:
    best = "none yet"
    if front.members:
        knee = front.knee
        best = ", ".join(f"{name} {value:.4g}" for name, value in knee.scores.items())
    return (
        f"{done}/{planned} trials · front {len(front.members)} · recommended: {best} "
        f"· left: {clock.left(planned - done)}"
    )
