"""The canary: a short measurement before a config is served, in the process that will serve it.

In: a point (a config and its recorded figures), its workload, a session. Out: a Canary that tells
whether the figures hold here, as verdict.py judges them. Never longer than LIMIT_S, not counting
the time to configure: the work is cut according to the recorded figures, and a repeat that takes
longer nevertheless ends its process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import Report
from engine.contract.requests import Workload
from engine.trace.fingerprint import Fingerprint
from tuner.deployment.document import Deployment, Measured, MeasuredMetric
from tuner.deployment.verdict import VERIFIED, Verification, judge
from tuner.engine_client.session import EngineSession
from tuner.errors import WorkerError

LIMIT_S = 60.0
_PLANNED_S = LIMIT_S / 2  # by the recorded figures; the rest is reserve for a slower machine
_WARM_UPS = 4  # most passes over one group that the engine takes
_REPEATS = 3
_LEAST_TOKENS = 8


@dataclass(frozen=True)
class Point:
    """A config and its measurements. trial: its number in its study."""

    trial: int
    config: EngineConfig
    measured: Measured


@dataclass(frozen=True)
class Canary:
    """The outcome for a point. problem: why it does not hold, None if it does; verification: None
    if nothing was measured; routing: of the workload's text, the reference for drift."""

    point: Point
    verification: Verification | None
    problem: str | None
    routing: Fingerprint | None = None

    @property
    def holds(self) -> bool:
        """Whether it reproduces its file's figures here."""
        return self.problem is None

    @property
    def busy(self) -> bool:
        """Whether it was too slow beside other programs, which says nothing of the config."""
        return self.verification is not None and self.verification.outcome == "busy"

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict, without the routing."""
        found = self.verification
        verdicts = [] if found is None else [verdict.to_json() for verdict in found.verdicts]
        return {
            "trial": self.point.trial,
            "holds": self.holds,
            "outcome": None if found is None else found.outcome,
            "problem": self.problem,
            "verdicts": verdicts,
            "load": None if found is None else found.load.to_json(),
        }


@dataclass(frozen=True)
class CanaryPlan:
    """The work that fits into the time limit. speeds: those that a cut workload can still
    verify."""

    workload: Workload
    repeats: int
    speeds: tuple[str, ...]


def points_of(deployment: Deployment) -> tuple[Point, ...]:
    """The file's own config, then its neighbours on the front, the most similar first."""
    own = Point(deployment.provenance.trial, deployment.config(), deployment.measured)
    others = (
        Point(one.trial, EngineConfig.from_dict(one.engine), one.measured)
        for one in deployment.neighbours
    )
    return (own, *others)


def plan_canary(point: Point, workload: Workload) -> CanaryPlan | None:
    """As many repeats, sequences and tokens as fit; None if not even the minimum does.

    Fewer output tokens leave tpot_ms alone and change output_tps, which is then not compared.
    """
    group = point.config.batch.count * point.config.batch.size
    whole, one_group = workload.sequences, min(workload.sequences, group)
    sizes = [(_REPEATS, whole), (1, whole), (1, one_group)]
    for repeats, sequences in sizes:
        cut = replace(workload, sequences=sequences)
        if _seconds(point, cut, repeats) <= _PLANNED_S:
            return CanaryPlan(cut, repeats, tuple(VERIFIED))
    tokens = workload.output_tokens // 2
    while tokens >= _LEAST_TOKENS:
        cut = replace(workload, sequences=one_group, output_tokens=tokens)
        if _seconds(point, cut, 1) <= _PLANNED_S:
            return CanaryPlan(cut, 1, ("tpot_ms",))
        tokens //= 2
    return None


def run_canary(
    session: EngineSession,
    point: Point,
    workload: Workload,
    *,
    seed: int,
    notify: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
) -> Canary:
    """Configures and measures. Raises WorkerError if the config does not run here.

    Afterwards the worker has the config, unless it took too long: then it was ended.
    """
    session.configure(point.config)
    plan = plan_canary(point, workload)
    if plan is None:
        return Canary(point, None, f"by its own figures a canary takes over {LIMIT_S:.0f} s")
    try:
        reports = _measure(session, plan, seed, notify, now)
    except WorkerError as error:
        if error.failure != "timeout":
            raise
        return Canary(
            point,
            None,
            f"a canary that should take {_PLANNED_S:.0f} s at most was not "
            f"done after {LIMIT_S:.0f} s",
        )
    found = judge(point.measured, reports, point.config.budget.vram_bytes, plan.speeds)
    problem = None if found.holds else found.sentence
    return Canary(point, found, problem, reports[-1].environment.get("routing"))


def _measure(
    session: EngineSession,
    plan: CanaryPlan,
    seed: int,
    notify: Callable[[str], None],
    now: Callable[[], float],
) -> list[Report]:
    """Measures at least one repeat, and more while the time allows another like the last."""
    deadline_s, last_s = now() + LIMIT_S, 0.0
    reports: list[Report] = []
    while len(reports) < plan.repeats:
        started_s = now()
        if reports and started_s + last_s > deadline_s:
            break
        notify(f"canary, repeat {len(reports) + 1} of {plan.repeats}")
        report = session.measure(
            plan.workload,
            warm_up=not reports,
            seed=seed + len(reports),
            limit_s=deadline_s - started_s,
        )
        reports.append(report)
        last_s = now() - started_s
    return reports


def _seconds(point: Point, workload: Workload, repeats: int) -> float:
    """The expected duration by the recorded figures, including warm-ups."""
    group = point.config.batch.count * point.config.batch.size
    groups = math.ceil(workload.sequences / group)
    one_ms = _recorded(point.measured, "ttft_ms")
    one_ms += _recorded(point.measured, "tpot_ms") * (workload.output_tokens - 1)
    return (_WARM_UPS + repeats * groups) * one_ms / 1e3


def _recorded(measured: Mapping[str, Any], name: str) -> float:
    found = measured.get(name)
    return found.value if isinstance(found, MeasuredMetric) else 0.0
