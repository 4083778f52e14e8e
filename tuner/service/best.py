"""Chooses the config that a deployment should run, among the fronts of all studies that fit.

`choose` is pure. `BestConfigs` queries the store only after a change, so that many deployments may
poll.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.files import short_digest
from tuner.definition.objectives import GOALS
from tuner.deployment.document import dump_deployment
from tuner.deployment.export import build_deployment
from tuner.pareto.front import Front, build_front
from tuner.pareto.probability import front_of
from tuner.service.requests import Goal
from tuner.store.repository import Store
from tuner.store.service import revision
from tuner.store.snapshots import StudySnapshot, TrialSnapshot


@dataclass(frozen=True)
class ConfigRequest:
    """A deployment's request. device and vram_bytes: None if any will do."""

    model: str
    device: str | None
    vram_bytes: int | None
    goal: Goal


@dataclass(frozen=True)
class Candidate:
    """A study of the requested model with its front."""

    study: StudySnapshot
    front: Front


@dataclass(frozen=True)
class Choice:
    """A trial and its study."""

    candidate: Candidate
    trial: TrialSnapshot


@dataclass(frozen=True)
class Answer:
    """A deployment YAML. etag: of exactly these bytes, in quotes."""

    text: str
    etag: str
    study: str
    trial: int


def choose(candidates: Sequence[Candidate], wanted: ConfigRequest) -> Choice | None:
    """The best trial for the goal among all fronts; None if nothing fits.

    Studies are compared by the objectives that all of them measured. If some evaluated quality, the
    others are ignored: no client should get a config whose loss is unknown.
    """
    fitting = {
        member.id: Choice(candidate, member)
        for candidate in candidates
        for member in candidate.front.members
        if _fits(member, wanted)
    }
    judged = {key: found for key, found in fitting.items() if "quality" in found.trial.scores}
    kept = judged or fitting
    objectives = _objectives(kept.values(), wanted.goal)
    floor = min((found.candidate.front.knee_quality for found in kept.values()), default=0.0)
    scored = [replace(c.trial, scores=_scores(c.trial, objectives)) for c in kept.values()]
    front = build_front(scored, objectives, floor) if scored else None
    if front is None or not front.members:
        return None
    return kept[front.pick(wanted.goal).id]


@dataclass
class BestConfigs:
    """Answers requests, cached until a trial ends or a sample is added. keep: number of cached
    requests."""

    view: Store
    keep: int = 128
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _known: OrderedDict[ConfigRequest, Answer | None] = field(
        default_factory=OrderedDict, init=False
    )
    _revision: tuple[Any, ...] = field(default=(), init=False)

    def find(self, wanted: ConfigRequest) -> Answer | None:
        """The current answer; None if no config fits."""
        current = revision(self.view.database)
        with self._lock:
            if current != self._revision:
                self._known.clear()
                self._revision = current
            elif wanted in self._known:
                self._known.move_to_end(wanted)
                return self._known[wanted]
        answer = self._ask(wanted)
        with self._lock:
            if current == self._revision:
                self._known[wanted] = answer
                if len(self._known) > self.keep:
                    self._known.popitem(last=False)
        return answer

    def _ask(self, wanted: ConfigRequest) -> Answer | None:
        studies = [study for study in self.view.studies() if study.model == wanted.model]
        candidates = [Candidate(s, front_of(s, self.view.trials(s))) for s in studies]
        choice = choose(candidates, wanted)
        return None if choice is None else _render(choice)


def _render(choice: Choice) -> Answer:
    """Renders a deployment YAML; the same trial and figures always give the same bytes."""
    study, front, trial = choice.candidate.study, choice.candidate.front, choice.trial
    built = build_deployment(study, front, trial)
    created = (trial.finished or study.updated).isoformat(timespec="seconds")
    provenance = built.provenance.model_copy(update={"created": created})
    text = dump_deployment(built.model_copy(update={"provenance": provenance}))
    digest = short_digest(text, 32)
    return Answer(text, f'"{digest}"', study.name, trial.number)


def _fits(trial: TrialSnapshot, wanted: ConfigRequest) -> bool:
    config = trial.config or {}
    name, budget_bytes = config["device"]["name"], config["budget"]["vram_bytes"]
    kind = name.partition(":")[0]
    device = wanted.device in (None, "auto", name, kind) or name == "auto"
    return device and (wanted.vram_bytes is None or 0 < budget_bytes <= wanted.vram_bytes)


def _objectives(choices: Iterable[Choice], goal: Goal) -> tuple[str, ...]:
    """The objectives of the studies, in order, and the goal's."""
    names = [name for choice in choices for name in choice.candidate.front.objectives]
    return tuple(dict.fromkeys([*names, *([GOALS[goal]] if goal in GOALS else [])]))


def _scores(trial: TrialSnapshot, objectives: Sequence[str]) -> dict[str, float]:
    """A trial's values of these objectives; speeds are measured even if they were not its
    objectives."""
    measured = {name: metric.value for name, metric in trial.figures.items()} | dict(trial.scores)
    return {name: measured[name] for name in objectives if name in measured}
