"""The front: non-dominated trials, one per configuration, and the recommended one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.definition.objectives import GOALS, SIGNS
from tuner.errors import StudyError, UsageError
from tuner.pareto import dominance
from tuner.store.snapshots import TrialSnapshot

# Without --min-quality, no config is recommended that loses more than this against 16 bits.
KNEE_MIN_QUALITY = 0.9


@dataclass(frozen=True)
class Front:
    """Non-dominated feasible trials, fastest first.

    trials: all trials that the front was built from; knee_quality: the recommended member has at
    least this quality, if any member does.
    """

    objectives: tuple[str, ...]
    members: tuple[TrialSnapshot, ...]
    trials: tuple[TrialSnapshot, ...]
    knee_quality: float = KNEE_MIN_QUALITY

    @property
    def knee(self) -> TrialSnapshot:
        """The recommended member; members must not be empty."""
        kept = [m for m in self.members if m.scores.get("quality", 1.0) >= self.knee_quality]
        among = kept or list(self.members)
        vectors = [[trial.scores[name] for name in self.objectives] for trial in among]
        return among[dominance.knee(vectors, self._signs())]

    def pick(self, wanted: str) -> TrialSnapshot:
        """Returns the trial for `knee`, `throughput`, `latency`, `quality`, or the number of any
        finished trial.

        Raises StudyError when the front is empty or the trial did not finish, UsageError for a word
        or a number that names no trial of this study.
        """
        if wanted.isdigit() and len(wanted) < 10:
            return self._numbered(int(wanted))
        if not self.members:
            raise StudyError("no configuration of this study ran within its limits yet")
        if wanted == "knee":
            return self.knee
        objective = GOALS.get(wanted)
        if objective is None or objective not in self.objectives:
            able = ["knee", *(p for p, o in GOALS.items() if o in self.objectives)]
            why = f"{objective} is no objective of this study; " if objective else ""
            raise UsageError(f"--pick {wanted}: {why}write {', '.join(able)} or a trial's number")
        sign = SIGNS[objective]
        return max(self.members, key=lambda trial: sign * trial.scores[objective])

    def _numbered(self, number: int) -> TrialSnapshot:
        for trial in self.trials:
            if trial.number == number:
                if trial.state == "COMPLETE":
                    return trial
                raise StudyError(
                    f"trial {number} is {trial.state}"
                    + (f" ({trial.reason})" if trial.reason else "")
                    + ": only a COMPLETE trial can be exported"
                )
        last = max((trial.number for trial in self.trials), default=None)
        have = "no trials yet" if last is None else f"trials 0 to {last}"
        raise UsageError(f"this study has no trial {number}: it has {have}")

    def _signs(self) -> list[int]:
        return [SIGNS[name] for name in self.objectives]


def build_front(
    trials: Sequence[TrialSnapshot], objectives: Sequence[str], min_quality: float | None = None
) -> Front:
    """Builds the front of means from all trials of a study; a configuration that was proposed twice
    counts once.

    min_quality: the user's own limit, in place of KNEE_MIN_QUALITY.
    """
    first: dict[int, TrialSnapshot] = {}
    for trial in trials:
        measured = all(name in trial.scores for name in objectives)
        if trial.feasible and measured and trial.configuration_id is not None:
            first.setdefault(trial.configuration_id, trial)
    candidates = list(first.values())
    vectors = [[trial.scores[name] for name in objectives] for trial in candidates]
    kept = dominance.front(vectors, [SIGNS[name] for name in objectives])
    members = by_objective([candidates[i] for i in kept], objectives[0])
    floor = KNEE_MIN_QUALITY if min_quality is None else min_quality
    return Front(tuple(objectives), members, tuple(trials), floor)


def by_objective(members: Sequence[TrialSnapshot], leading: str) -> tuple[TrialSnapshot, ...]:
    """Sorts members by one objective, best first."""
    return tuple(sorted(members, key=lambda t: -SIGNS[leading] * t.scores[leading]))
