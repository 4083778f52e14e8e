"""What `tune --model M` prints on stdout: a plan, or the result of a study."""

from __future__ import annotations

import shlex
from typing import Any

from engine.contract.requests import Workload
from tuner.cli.front import plot_front, print_curve, print_front
from tuner.cli.output import print_json, print_table, print_text
from tuner.definition.workload import describe_workload
from tuner.errors import InfeasibleStudyError, StudyError
from tuner.formatting import format_count, format_duration
from tuner.pareto.budget_curve import fronts_by_budget
from tuner.search.acquisition import MIN_IMPROVEMENT
from tuner.store.snapshots import FINISHED_STATES
from tuner.study.estimate import StudyPlan, check
from tuner.study.run import StudyResult


def check_found(result: StudyResult) -> None:
    """Exits with 1 or 3 when nothing can be recommended."""
    if result.front.members:
        return
    states = result.study.trials_by_state
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    hint = f"see `tune show {result.study.name}`"
    if set(states) <= {"INFEASIBLE"}:
        needed = [t.memory.get("total_bytes") for t in result.trials if t.memory]
        smallest = min((int(n) for n in needed if n), default=None)
        raise InfeasibleStudyError(f"no trial fitted the budget ({counts}); {hint}", smallest)
    raise StudyError(f"no trial ran to its end within the limits ({counts}); {hint}")


def print_result(result: StudyResult) -> None:
    """Prints the front, how the study ended, and where the config is."""
    print_front(result.front)
    plot_front(result.front)
    print_curve(fronts_by_budget(result.study, result.trials))
    workload = Workload.from_json(dict(result.study.workload))
    print_text(f"figures speak for {describe_workload(workload)}")
    finished = sum(trial.state in FINISHED_STATES for trial in result.trials)
    if result.ended_early:
        print_text(
            f"ended after {format_count(finished, 'trial')}: no other config is expected to add "
            f"more than {MIN_IMPROVEMENT:.1%} to the hypervolume"
        )
    if result.not_tried:
        left = (f"{name} {', '.join(map(str, own))}" for name, own in result.not_tried.items())
        print_text(f"measured by no trial: {'; '.join(left)}")
    if took := check(result.study):
        print_text(took)
    if result.output:
        print_text(f"recommended: trial {result.front.knee.number}, written to {result.output}")
        file = shlex.quote(str(result.output))
        print_text(f"try it: tune run {file} --prompt 'Once upon a time'")


def result_document(result: StudyResult) -> dict[str, Any]:
    """The document of `tune --json`."""
    front = result.front
    return {
        "study": result.study.to_json(),
        "trials": [trial.to_json() for trial in result.trials],
        "front": [trial.to_json() for trial in front.members],
        "recommended": front.knee.number if front.members else None,
        "output": result.output,
        "curve": [p.to_json() for p in fronts_by_budget(result.study, result.trials)],
    }


def print_plan(plan: StudyPlan, as_json: bool) -> None:
    """Prints the search space and the estimate."""
    if as_json:
        print_json(plan.to_json())
        return
    rows = [[p.name, ", ".join(map(str, p.choices))] for p in plan.space.parameters]
    print_table(f"Search space: {plan.space.size} points", ["setting", "choices"], rows)
    print_text(plan_line(plan))
    print_text(describe_workload(plan.workload))


def plan_line(plan: StudyPlan) -> str:
    """The plan in one line."""
    estimate = "unknown" if plan.estimate_s is None else format_duration(plan.estimate_s)
    return (
        f"{plan.model}: {plan.space.size} points, {plan.fitting} of {plan.checked} memory "
        f"layouts fit; {format_count(plan.trials, 'trial')}, about {estimate}"
    )
