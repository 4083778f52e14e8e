"""The stages of a study as displays name them, and what a study does at one moment.

In: nothing but numbers. Out: an Activity as a line, as JSON, or as the store keeps it. It must not
know who shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from engine.inputs.typed import check_types
from tuner.formatting import format_duration
from tuner.store.contents import readable

Stage = Literal[
    "opening", "checking", "planning", "profiling", "tracing", "predicting", "searching",
    "configuring", "packing", "warming_up", "measuring", "reference", "evaluating", "confirming",
]  # fmt: skip
WORDS: Mapping[Stage, str] = {
    "opening": "opening the model",
    "checking": "checking the tasks",
    "planning": "planning",
    "profiling": "profiling the machine",
    "tracing": "recording a routing trace",
    "predicting": "predicting configs by replay",
    "searching": "choosing the next config",
    "configuring": "configuring",
    "packing": "packing experts",
    "warming_up": "warming up",
    "measuring": "measuring",
    "reference": "evaluating the 16-bit reference",
    "evaluating": "evaluating quality",
    "confirming": "confirming the front",
}


@dataclass(frozen=True)
class Activity:
    """What a study does now. done, total: of the stage's steps, total None where they are not
    counted; stage_s: seconds in it so far; trial: the number of the running trial, or of the one
    that is confirmed; the seconds left are estimates, None where there is nothing to go by."""

    stage: Stage
    done: int
    total: int | None
    stage_s: float
    elapsed_s: float
    trial: int | None
    trials_done: int
    trials_planned: int | None
    trial_left_s: float | None
    study_left_s: float | None

    @property
    def what(self) -> str:
        """The stage in words, with its trial and how much of it is done."""
        trial = "" if self.trial is None else f"trial {self.trial}: "
        counted = "" if self.total is None else f" {self.done}/{self.total}"
        return f"{trial}{WORDS[self.stage]}{counted} ({format_duration(self.stage_s)})"

    @property
    def left(self) -> str:
        """The seconds left of trial and study in words."""
        trial = "" if self.trial_left_s is None else f"trial {format_duration(self.trial_left_s)}, "
        study = "unknown" if self.study_left_s is None else format_duration(self.study_left_s)
        return f"left: {trial}study {study}"

    @property
    def trials(self) -> str:
        """How many trials have ended, of how many."""
        return "" if self.trials_planned is None else f"{self.trials_done}/{self.trials_planned}"

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Activity:
        """Reads what `to_json` wrote, among other keys. Raises StoreError for anything else."""
        with readable("progress of a study"):
            found = cls(**{one.name: data[one.name] for one in fields(cls)})
            check_types(found)
            return found

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict; seconds to the millisecond."""
        return {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }
