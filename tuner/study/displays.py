"""Displays of a study's progress: a live view, lines, JSON for programs, and what the store keeps.

In: activities and ended trials. Out: text on stderr, or a row in the store.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from engine.inputs.visible import as_one_entry, visible
from tuner.errors import StoreError
from tuner.pareto.figures import format_figure
from tuner.pareto.front import Front
from tuner.store.repository import Store
from tuner.store.snapshots import TrialSnapshot
from tuner.study.progress import Display
from tuner.study.stages import Activity

log = logging.getLogger(__name__)

LINE_S = 10.0  # a log gets a line at least so often
KEPT_S = 5.0  # the store is written at most so often within a stage
MOST_ROWS = 8  # of the front in the live view
PROGRESS_SCHEMA = "expertune-progress/v1"  # a new number when a key goes or changes its meaning


def choose_display(as_json: bool = False) -> Display:
    """JSON if that was asked for; else the live view on a terminal, lines elsewhere."""
    if as_json:
        return JsonLines(sys.stderr)
    console = Console(stderr=True)
    return LiveView(console) if sys.stderr.isatty() else Lines(console)


@dataclass
class Lines:
    """A line for each trial, and one every ten seconds; for logs, pipes and scripts."""

    console: Console
    _last_s: float = field(default=0.0, init=False)
    _front: Front | None = field(default=None, init=False)

    def opened(self) -> None:
        """Nothing to prepare."""

    def stage(self, activity: Activity) -> None:
        """A stage that ends soon is no news."""

    def tick(self, activity: Activity) -> None:
        """Prints a line if the last one is old."""
        if activity.elapsed_s - self._last_s >= LINE_S:
            self._print_state(activity)

    def trial_done(self, trial: TrialSnapshot, front: Front, activity: Activity) -> None:
        """Prints the trial, then the state of the study."""
        self._front = front
        self.note(trial_line(trial))
        self._print_state(activity)

    def note(self, text: str) -> None:
        """Prints it."""
        self.console.print(as_one_entry(text), highlight=False, markup=False, soft_wrap=True)

    def closed(self) -> None:
        """Nothing to tidy up."""

    def _print_state(self, activity: Activity) -> None:
        self._last_s = activity.elapsed_s
        trials = f"{activity.trials} trials" if activity.trials else ""
        said = (trials, activity.what, activity.left, front_line(self._front))
        self.note(f"  {' · '.join(filter(None, said))}")


@dataclass
class LiveView:
    """Scrolls finished trials; below them, what runs now, the time left and the front."""

    console: Console
    _live: Live | None = field(default=None, init=False)
    _front: Front | None = field(default=None, init=False)

    def opened(self) -> None:
        """Takes the bottom of the terminal; drawn by `tick`, so that no other thread draws."""
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live.start()

    def stage(self, activity: Activity) -> None:
        """Draws it."""
        self.tick(activity)

    def tick(self, activity: Activity) -> None:
        """Draws it."""
        if self._live is not None:
            self._live.update(self._view(activity), refresh=True)

    def trial_done(self, trial: TrialSnapshot, front: Front, activity: Activity) -> None:
        """Prints the trial above the view."""
        self._front = front
        self.note(trial_line(trial))
        self.tick(activity)

    def note(self, text: str) -> None:
        """Prints it above the view."""
        self.console.print(as_one_entry(text), highlight=False, markup=False)

    def closed(self) -> None:
        """Gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _view(self, activity: Activity) -> Group:
        trials = f"{activity.trials} trials · " if activity.trials else ""
        lines = Text(visible(f"{trials}{activity.what}")), Text(visible(activity.left))
        front = self._front
        if front is None or not front.members:
            return Group(*lines)
        table = Table("trial", *front.objectives, "figures", title="Front so far (* recommended)")
        table.title_justify = "left"
        for member in front.members[:MOST_ROWS]:
            mark = " *" if member.id == front.knee.id else ""
            figures = (format_figure(member, name) for name in front.objectives)
            table.add_row(f"{member.number}{mark}", *figures, member.source)
        return Group(*lines, table)


@dataclass
class JsonLines:
    """One JSON object a line (docs/json.md): stage, trial, note and end events, for programs."""

    stream: TextIO
    _last_s: float = field(default=0.0, init=False)
    _shown: tuple[Any, ...] = field(default=(), init=False)

    def opened(self) -> None:
        """The first stage is the first event."""

    def stage(self, activity: Activity) -> None:
        """Writes each stage as it begins, and its steps at most once a second."""
        shown = (activity.stage, activity.trial)
        if shown != self._shown or activity.elapsed_s - self._last_s >= 1.0:
            self._shown = shown
            self._write_stage(activity)

    def tick(self, activity: Activity) -> None:
        """Writes the stage again if the last event is old."""
        if activity.elapsed_s - self._last_s >= LINE_S:
            self._write_stage(activity)

    def trial_done(self, trial: TrialSnapshot, front: Front, activity: Activity) -> None:
        """Writes the trial with its figures, and which trials are on the front now."""
        names = ("number", "state", "failure", "reason", "feasible", "params", "scores", "source")
        whole = trial.to_json()
        self._write(
            "trial",
            elapsed_s=activity.elapsed_s,
            trial={name: whole[name] for name in names},
            front=[member.number for member in front.members],
            recommended=front.knee.number if front.members else None,
            trials_done=activity.trials_done,
            trials_planned=activity.trials_planned,
        )

    def note(self, text: str) -> None:
        """Writes a sentence."""
        self._write("note", text=text)

    def closed(self) -> None:
        """Writes that nothing more will come; the exit code says how it ended."""
        self._write("end")

    def _write_stage(self, activity: Activity) -> None:
        self._last_s = activity.elapsed_s
        self._write("stage", **activity.to_json())

    def _write(self, event: str, **fields: Any) -> None:
        said = {"schema": PROGRESS_SCHEMA, "event": event, "time": _now(), **fields}
        self.stream.write(json.dumps(said, default=str) + "\n")
        self.stream.flush()


@dataclass
class Kept:
    """What the study does now, in its row of the store, for service and dashboard."""

    store: Store
    study_id: int
    _last_s: float = field(default=-KEPT_S, init=False)
    _shown: tuple[Any, ...] = field(default=(), init=False)

    def opened(self) -> None:
        """The row is there."""

    def stage(self, activity: Activity) -> None:
        """The next tick writes it: a stage may last milliseconds."""

    def tick(self, activity: Activity) -> None:
        """Writes a new stage at once, the same one again after some seconds."""
        shown = (activity.stage, activity.trial)
        if shown == self._shown and activity.elapsed_s - self._last_s < KEPT_S:
            return
        self._shown, self._last_s = shown, activity.elapsed_s
        if self.store.database.lost() is not None:
            return  # opening it again would make an empty one
        try:
            self.store.keep_progress(self.study_id, {**activity.to_json(), "time": _now()})
        except StoreError as error:
            log.info("what the study does now cannot be kept: %s", error)

    def trial_done(self, trial: TrialSnapshot, front: Front, activity: Activity) -> None:
        """The trial has its own row."""

    def note(self, text: str) -> None:
        """Notes are for whoever started the study."""

    def closed(self) -> None:
        """The end of the study clears it."""


def trial_line(trial: TrialSnapshot) -> str:
    """An ended trial in one line."""
    params = " ".join(f"{name.split('.')[-1]}={value}" for name, value in trial.params.items())
    if trial.state == "COMPLETE":
        figures = " ".join(f"{name} {value:.4g}" for name, value in trial.scores.items())
        limits = "" if trial.feasible else " (outside the limits)"
        return f"trial {trial.number}: {trial.source} {figures}{limits} [{params}]"
    why = f" ({trial.failure})" if trial.failure else ""
    return f"trial {trial.number}: {trial.state}{why} {trial.reason} [{params}]"


def front_line(front: Front | None) -> str:
    """The size of the front and the recommended config's figures; empty before the first trial."""
    if front is None:
        return ""
    if not front.members:
        return "front 0"
    best = ", ".join(f"{name} {value:.4g}" for name, value in front.knee.scores.items())
    number, source = front.knee.number, front.knee.source
    return f"front {len(front.members)} · recommended: trial {number}, {best} ({source})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
