"""Pace: what stages took so far in this study, and what that says of the time left.

In: seconds by stage and trial, as they pass. Out: seconds left. Before a stage has run, the plan's
estimate stands in for it; afterwards only what was seen counts. It must not know clocks or screens.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tuner.study.stages import Stage

# In this order within a trial; the reference is evaluated in one of them only.
OF_TRIALS: tuple[Stage, ...] = (
    "searching", "opening", "configuring", "packing", "warming_up", "measuring", "evaluating",
)  # fmt: skip
OF_CONFIRMING: tuple[Stage, ...] = ("configuring", "warming_up")
MEMBERS = 3  # the usual number of front members, until there is a front
PREPARING: Mapping[Stage, str] = {"profiling": "profile", "tracing": "trace", "predicting": "twin"}


@dataclass
class Pace:
    """planned: the plan's seconds by stage (tuner.study.estimate), {} without one; trials: of the
    study that are expected, None before it is known; confirm_rounds: of the front."""

    planned: Mapping[str, float] = field(default_factory=dict)
    trials: int | None = None
    confirm_rounds: int = 0
    _trials: list[dict[Stage, float]] = field(default_factory=list, init=False)
    _steps_s: list[float] = field(default_factory=list, init=False)
    _openings_s: list[float] = field(default_factory=list, init=False)
    _confirmed_s: list[float] = field(default_factory=list, init=False)
    _seen: set[Stage] = field(default_factory=set, init=False)

    def stage_ended(self, stage: Stage, seconds: float, steps: int) -> None:
        """Learns from a stage that ended after so many steps."""
        self._seen.add(stage)
        if stage == "opening":
            self._openings_s.append(seconds)
        elif stage == "measuring" and steps:
            self._steps_s.append(seconds / steps)
        elif stage == "confirming":
            self._confirmed_s.append(seconds)

    def trial_ended(self, spent: Mapping[Stage, float]) -> None:
        """Learns from a trial's seconds by stage."""
        self._trials.append({stage: spent[stage] for stage in OF_TRIALS if stage in spent})

    @property
    def trial_s(self) -> float | None:
        """What a trial takes: the mean so far, else the plan's; None without either."""
        if self._trials:
            return sum(self._typical().values())
        if "search" in self.planned and self.trials:
            return self.planned["search"] / self.trials
        return None

    def trial_left_s(self, spent: Mapping[Stage, float], stage: Stage) -> float | None:
        """Seconds left of a trial that is in `stage`, after spending so much in each."""
        if not self._trials:
            planned_s = self.trial_s
            return None if planned_s is None else max(0.0, planned_s - sum(spent.values()))
        place = OF_TRIALS.index(stage) if stage in OF_TRIALS else 0
        typical = self._typical()
        return sum(
            max(0.0, typical.get(one, 0.0) - spent.get(one, 0.0)) for one in OF_TRIALS[place:]
        )

    def repeats_left_s(self, repeats: int, members: int) -> float | None:
        """Seconds of so many confirming repeats of so many members; None before anything like them
        was seen or planned. Until one was seen, a repeat takes what configuring, warming up and
        measuring took, and a round over the members opens the model once."""
        if self._confirmed_s:
            return repeats * statistics.fmean(self._confirmed_s)
        if not self._steps_s:
            return self.planned.get("confirm") if repeats else 0.0
        typical = self._typical()
        each_s = statistics.fmean(self._steps_s)
        each_s += sum(typical.get(stage, 0.0) for stage in OF_CONFIRMING)
        opening_s = statistics.fmean(self._openings_s) if self._openings_s else 0.0
        return repeats * each_s + repeats / max(1, members) * opening_s

    def preparing_left_s(self) -> float:
        """Seconds of the stages between first trial and search that have not run yet."""
        return sum(
            self.planned.get(name, 0.0) for one, name in PREPARING.items() if one not in self._seen
        )

    def _typical(self) -> dict[Stage, float]:
        """Mean seconds of each stage in a trial."""
        total: dict[Stage, float] = defaultdict(float)
        for trial in self._trials:
            for stage, seconds in trial.items():
                total[stage] += seconds
        return {stage: seconds / len(self._trials) for stage, seconds in total.items()}
