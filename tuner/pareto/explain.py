"""Explains the speed of the recommended config and the trade-offs that the front offers.

In: trials of a study. Out: values and sentences for `tune show`; nothing is run.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuner.pareto.front import Front
from tuner.store.snapshots import TrialSnapshot

PARTS: Mapping[str, str] = {
    "disk_wait": "waiting for the disk",
    "transfer_wait": "waiting for the link",
    "compute": "computing experts",
    "non_expert": "the non-expert weights",
    "router": "routers",
    "policy": "deciding what to keep and fetch",
    "other": "everything else",
}


@dataclass(frozen=True)
class Bottleneck:
    """The time split of a token. part: the largest, of PARTS; fractions: of all parts."""

    part: str
    fractions: Mapping[str, float]

    @property
    def sentence(self) -> str:
        """A summary for users."""
        rest = sorted(self.fractions.items(), key=lambda item: -item[1])[1:3]
        others = ", ".join(f"{PARTS[name]} {fraction:.0%}" for name, fraction in rest)
        largest = f"{self.fractions[self.part]:.0%} of a token's time goes into {PARTS[self.part]}"
        return f"{largest} ({others})"


@dataclass(frozen=True)
class TradeOff:
    """Another member of the front. changes: relative to the recommended one, by objective;
    settings: (recommended, other) where they differ."""

    trial: int
    changes: Mapping[str, float]
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def sentence(self) -> str:
        """A summary for users."""
        figures = ", ".join(f"{name} {change:+.1%}" for name, change in self.changes.items())
        settings = ", ".join(f"{path} {old} -> {new}" for path, (old, new) in self.settings.items())
        return f"trial {self.trial}: {figures} ({settings})"


@dataclass(frozen=True)
class TwinError:
    """Relative error of the predictions of n measured trials. factor: the median ratio of predicted
    to measured, which is divided out before median and largest are taken; inside: how many figures
    lay within the interval that the search expected nine of ten to be in, of `intervals`."""

    median: float
    largest: float
    factor: float
    n: int
    inside: int = 0
    intervals: int = 0


@dataclass(frozen=True)
class Explanation:
    """The explanation of one recommended trial."""

    trial: int
    bottleneck: Bottleneck | None
    trade_offs: tuple[TradeOff, ...]
    twin: TwinError | None

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


def explain(front: Front, trials: Sequence[TrialSnapshot]) -> Explanation | None:
    """Explains the recommended trial; returns None for an empty front."""
    if not front.members:
        return None
    knee = front.knee
    others = [member for member in front.members if member.number != knee.number]
    return Explanation(
        knee.number,
        bottleneck_of(knee),
        tuple(_trade_off(knee, other, front.objectives) for other in others),
        twin_error(trials),
    )


def bottleneck_of(trial: TrialSnapshot) -> Bottleneck | None:
    """Finds the largest part of a token's time; None if the engine measured no time split."""
    parts = {
        name: metric.value
        for name in PARTS
        if (metric := trial.figures.get(f"time_ms_per_token.{name}")) is not None
    }
    total = sum(parts.values())
    if total <= 0:
        return None
    fractions = {name: value / total for name, value in parts.items()}
    return Bottleneck(max(fractions, key=fractions.__getitem__), fractions)


def twin_error(trials: Sequence[TrialSnapshot], metric: str = "output_tps") -> TwinError | None:
    """Relative error of the predictions made before measurements corrected them. Their common
    factor is reported apart, since the search corrects it at once. None without predictions."""
    ratios = [
        trial.predicted[metric] / found.value
        for trial in trials
        if trial.predicted.get(metric) and (found := trial.figures.get(metric)) and found.value
    ]
    if not ratios:
        return None
    common = statistics.median(ratios)
    errors = [abs(ratio / common - 1) for ratio in ratios]
    return TwinError(
        statistics.median(errors), max(errors), common, len(errors), *_covered(trials, metric)
    )


def _covered(trials: Sequence[TrialSnapshot], metric: str) -> tuple[int, int]:
    """How many figures lie within the interval that the search expected, of how many with one."""
    inside = [
        trial.predicted[f"{metric}_low"] <= found.value <= trial.predicted[f"{metric}_high"]
        for trial in trials
        if {f"{metric}_low", f"{metric}_high"} <= trial.predicted.keys()
        and (found := trial.figures.get(metric)) is not None
    ]
    return sum(inside), len(inside)


def _trade_off(knee: TrialSnapshot, other: TrialSnapshot, objectives: Sequence[str]) -> TradeOff:
    changes = {
        name: other.scores[name] / knee.scores[name] - 1 for name in objectives if knee.scores[name]
    }
    settings = {
        path: (knee.params.get(path), value)
        for path, value in other.params.items()
        if knee.params.get(path) != value
    }
    return TradeOff(other.number, changes, settings)
