"""`tune studies` and `tune show`: print the contents of the store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.contract.requests import Workload
from tuner.cli import options
from tuner.cli.front import plot_front, print_curve, print_front
from tuner.cli.output import print_json, print_table, print_text
from tuner.definition.workload import describe_workload, summarize_workload
from tuner.deployment.defaults import changed_paths
from tuner.formatting import format_count
from tuner.pareto.budget_curve import fronts_by_budget
from tuner.pareto.explain import Explanation, explain
from tuner.pareto.figures import format_figure
from tuner.pareto.front import Front
from tuner.pareto.importance import importances
from tuner.pareto.probability import front_of, on_front
from tuner.quality.paired import PairedResult, paired_results
from tuner.store.repository import Store
from tuner.store.snapshots import MEASURED_STATES, StudySnapshot, TrialSnapshot
from tuner.study.estimate import check
from tuner.study.warm_start import warm_start_gain

Paired = dict[int, tuple[PairedResult, ...]]
FEW_TRIALS = 50  # with fewer, importances are only a hint


def studies(storage: options.Storage = None, as_json: options.Json = False) -> None:
    """List the studies.

    Example: tune studies --json
    """
    with options.open_store_read_only(storage) as store:
        found = store.studies()
    if as_json:
        print_json({"studies": [study.to_json() for study in found]})
        return
    rows = [
        [s.name, s.model, s.state, s.trials, _counts(s), f"{s.updated:%Y-%m-%d %H:%M}"]
        for s in found
    ]
    print_table("", ["study", "model", "state", "#trials", "by state", "updated (UTC)"], rows)


def show(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Its name, see `tune studies`.")],
    storage: options.Storage = None,
    as_json: options.Json = False,
) -> None:
    """Show a study: its front, all trials, importances of settings, failures.

    Example: tune show demo
    """
    with options.open_store_read_only(storage) as store:
        study = store.study(name)
        trials = store.trials(study)
        paired = _paired(store, trials)
    front = front_of(study, trials)
    weights = importances(trials, front.objectives)
    if as_json:
        print_json(_document(study, trials, front, weights, paired))
        return
    print_text(
        f"{study.name}: {study.model}, {study.state}, {format_count(study.trials, 'trial')}, "
        f"{_counts(study)}"
    )
    print_text(describe_workload(Workload.from_json(dict(study.workload))))
    if took := check(study):
        print_text(took)
    print_front(front)
    plot_front(front)
    print_curve(fronts_by_budget(study, trials))
    _print_trials(trials, front.objectives)
    _print_explanation(explain(front, trials))
    for sentence in warm_start_gain(front, trials):
        print_text(sentence)
    _print_quality(front, paired)
    _print_importances(weights, sum(trial.state in MEASURED_STATES for trial in trials))
    _print_failures(trials)


def _document(
    study: StudySnapshot,
    trials: tuple[TrialSnapshot, ...],
    front: Front,
    weights: dict[str, dict[str, float]],
    paired: Paired,
) -> dict[str, Any]:
    probability = on_front(front)

    def document(trial: TrialSnapshot) -> dict[str, Any]:
        pairs = [one.to_json() for one in paired.get(trial.id, ())]
        return {
            **trial.to_json(),
            "quality_paired": pairs,
            "on_front": probability.get(trial.number, 0.0),
        }

    return {
        "study": {
            **study.to_json(),
            "definition": dict(study.definition),
            "machine": dict(study.machine),
            "workload": summarize_workload(Workload.from_json(dict(study.workload))),
            "workload_hash": study.workload_hash,
        },
        "trials": [document(trial) for trial in trials],
        "front": [document(trial) for trial in front.members],
        "recommended": front.knee.number if front.members else None,
        "importances": weights,
        "curve": [point.to_json() for point in fronts_by_budget(study, trials)],
        "explanation": found.to_json() if (found := explain(front, trials)) else None,
    }


def _paired(store: Store, trials: tuple[TrialSnapshot, ...]) -> Paired:
    """Compares each trial with 16 bits item by item; evaluations that trials share are read
    once."""
    ids = {trial.id: (trial.reference_id, trial.quality_id) for trial in trials}
    wanted = {one for pair in ids.values() for one in pair if one is not None}
    reports = store.with_items(wanted)
    known = {
        pair: paired_results(reports[pair[0]], reports[pair[1]])
        for pair in set(ids.values())
        if pair[0] is not None and pair[1] is not None
    }
    return {trial: known[pair] for trial, pair in ids.items() if pair in known}


def _print_quality(front: Front, paired: Paired) -> None:
    """Prints the tasks of the front's trials, one line for trials of the same evaluation."""
    rows: dict[tuple[int | None, str, str], list[Any]] = {}
    for trial in front.members:
        results = {(r.task, r.metric): r for r in trial.quality.tasks} if trial.quality else {}
        for one in paired.get(trial.id, ()):
            row = rows.get((trial.quality_id, one.task, one.metric))
            if row is not None:
                row[0] += f", {trial.number}"
                continue
            result = results.get((one.task, one.metric))
            rows[trial.quality_id, one.task, one.metric] = [
                str(trial.number),
                f"{one.task} {one.metric}",
                result.value if result else None,
                result.stderr if result else None,
                one.chance,
                one.value,
                one.reference,
                f"{one.difference.value:+.4f} [{one.difference.low:+.4f}, "
                f"{one.difference.high:+.4f}]",
                one.difference.n,
            ]
        for name, result in ((f"{r.task} {r.metric}", r) for r in results.values() if r.group):
            row = rows.get((trial.quality_id, result.task, result.metric))
            if row is not None:
                row[0] += f", {trial.number}"
                continue
            figures = [result.value, result.stderr, None, None, None, None, result.n]
            rows[trial.quality_id, result.task, result.metric] = [str(trial.number), name, *figures]
    if rows:
        columns = ["trials", "task", "#value", "#stderr", "#chance", "#above chance"]
        columns += ["#at 16 bits", "#difference", "#n"]
        title = "Quality of the front, item by item against 16 bits (95 % intervals)"
        print_table(title, columns, list(rows.values()))
    if cut := max((t.quality.cut_texts for t in front.members if t.quality), default=0):
        print_text(f"{format_count(cut, 'text')} exceeded kv.max_tokens and lost the beginning")


def _print_trials(trials: tuple[TrialSnapshot, ...], objectives: tuple[str, ...]) -> None:
    rows = [
        [
            trial.number,
            trial.state if trial.feasible or trial.state != "COMPLETE" else "OUTSIDE LIMITS",
            *(format_figure(trial, name) for name in objectives),
            trial.source if trial.scores else "-",
            " ".join(f"{key}={value}" for key, value in changed_paths(trial.params).items())
            or "defaults",
        ]
        for trial in trials
    ]
    columns = [
        "#trial",
        "state",
        *(f"#{name}" for name in objectives),
        "figures",
        "settings that differ from the defaults",
    ]
    print_table("Trials", columns, rows)


def _print_explanation(found: Explanation | None) -> None:
    if found is None:
        return
    if found.bottleneck is not None:
        print_text(f"trial {found.trial}: {found.bottleneck.sentence}")
    for trade_off in found.trade_offs:
        print_text(f"instead, {trade_off.sentence}")
    if found.twin is not None:
        print_text(
            f"predictions were off by {found.twin.median:.0%} (median of "
            f"{format_count(found.twin.n, 'trial')}, at most {found.twin.largest:.0%}) beside a "
            f"common factor of {found.twin.factor:.2f}"
        )
        if found.twin.intervals:
            print_text(
                f"{found.twin.inside} of {format_count(found.twin.intervals, 'trial')} lay within "
                "the interval that the search expected nine of ten to be in"
            )


def _print_importances(weights: dict[str, dict[str, float]], trials: int) -> None:
    if not weights:
        return
    names = sorted({name for by_name in weights.values() for name in by_name})
    rows = [[name, *(by_name.get(name) for by_name in weights.values())] for name in names]
    print_table(
        "How much each setting matters (PED-ANOVA)", ["setting", *(f"#{o}" for o in weights)], rows
    )
    if trials < FEW_TRIALS:
        print_text(f"from {format_count(trials, 'measured trial')}: no more than a hint")


def _print_failures(trials: tuple[TrialSnapshot, ...]) -> None:
    rows = [[t.number, t.failure, t.reason] for t in trials if t.failure is not None]
    if rows:
        print_table("Failures", ["#trial", "class", "reason"], rows)


def _counts(study: StudySnapshot) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(study.trials_by_state.items()))
