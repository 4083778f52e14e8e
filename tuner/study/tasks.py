"""The lm-eval tasks of a study: the default task, and a check of all before the first trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.requests import TaskNeed
from engine.facts.model import ModelFacts
from tuner.definition.study import StudyDefinition
from tuner.engine_client.session import EngineSession
from tuner.errors import StudyError, UsageError, WorkerError
from tuner.folders import studies_folder
from tuner.quality.judge import PASSING
from tuner.search.space import study_base

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 40
CAPACITY = "kv.max_tokens"


def with_default_tasks(definition: StudyDefinition) -> StudyDefinition:
    """Adds held-out text from studies/demo if quality is an objective and no task was named."""
    if "quality" not in definition.objectives or definition.quality.tasks:
        return definition
    task = studies_folder() / "demo" / "tasks" / "demo_bpb.yaml"
    if not task.is_file():
        raise StudyError(
            f"quality needs a task and the default {task} is missing: name one with --tasks, or "
            "study speed alone with --objectives output_tps,tpot_ms"
        )
    limit = definition.quality.limit or DEFAULT_LIMIT
    quality = definition.quality.model_copy(update={"tasks": [str(task)], "limit": limit})
    return definition.model_copy(update={"quality": quality})


@dataclass(frozen=True)
class CheckedStudy:
    """A definition whose tasks can be evaluated. notes: what the user should know of them."""

    definition: StudyDefinition
    notes: tuple[str, ...] = ()


def check_tasks(definition: StudyDefinition, session: EngineSession) -> CheckedStudy:
    """Loads the tasks once, so that what would fail every trial is refused before the first.

    If the study leaves kv.max_tokens open, it becomes as large as the tasks need. Raises UsageError
    for tasks that cannot be evaluated as they are, StudyError for data that cannot be reached. If
    the engine dies of the question twice, the check is skipped and the trials will show it.
    """
    if "quality" not in definition.objectives:
        if definition.constraints.min_quality is not None:
            raise UsageError(
                "min_quality limits what no trial evaluates: add quality to the objectives, or "
                "leave the limit out"
            )
        return CheckedStudy(definition)
    quality = definition.quality
    for _ in range(2):
        try:
            needs = session.check_tasks(quality.tasks, quality.options(definition.seed))
            return with_capacity(definition, session.describe(), needs)
        except WorkerError as error:
            if error.failure == "task":
                refused = UsageError if error.worker_exit_code == 2 else StudyError
                raise refused(f"--tasks: {error}") from None
            if error.failure not in PASSING:
                raise
            log.warning("whether the tasks can be evaluated could not be asked: %s", error)
    return CheckedStudy(definition)


def with_capacity(
    definition: StudyDefinition, facts: ModelFacts, needs: Sequence[TaskNeed]
) -> CheckedStudy:
    """Makes kv.max_tokens large enough for the tasks, or refuses them if it is fixed.

    A prompt is never cut, nor is a continuation. The context of a continuation is, as lm-eval does
    where it exceeds the model itself; notes say so. Raises UsageError with both numbers.
    """
    workload = definition.fitted_workload(facts).workload
    base = study_base(definition, facts, workload, definition.device)
    choices = definition.space.get(CAPACITY, [])
    fixed = CAPACITY in definition.engine or bool(choices)
    capacity = min((int(choice) for choice in choices), default=base.kv.max_tokens)
    wanted = max(map(_wanted, needs), default=0)
    most = facts.max_positions or max(capacity, wanted)
    for need in needs:
        if _required(need) > most:
            raise UsageError(_too_long(need, f"{facts.id} has {most} positions"))
        if fixed and _required(need) > capacity:
            advice = f"set `engine: {{{CAPACITY}: {_required(need)}}}`, or "
            raise UsageError(_too_long(need, f"{CAPACITY} is {capacity}", advice))
    if fixed or wanted <= capacity:
        return CheckedStudy(definition, _cut(needs, min(capacity, most)))
    raised = min(wanted, most)
    note = f"{CAPACITY} is {raised} instead of {capacity}, as these tasks need"
    changed = definition.model_copy(update={"task_tokens": raised})
    return CheckedStudy(changed, (note, *_cut(needs, raised)))


def _required(need: TaskNeed) -> int:
    return max(need.generated_tokens, need.target_tokens)


def _wanted(need: TaskNeed) -> int:
    """The last token of a scored text is not read."""
    return max(_required(need), need.scored_tokens - 1)


def _cut(needs: Sequence[TaskNeed], capacity: int) -> tuple[str, ...]:
    """A note for each task whose texts lose their beginning."""
    return tuple(
        f"task {need.task}: its longest text has {need.scored_tokens} tokens, of which the last "
        f"{capacity + 1} count, as lm-eval does"
        for need in needs
        if need.scored_tokens - 1 > capacity
    )


def _too_long(need: TaskNeed, limit: str, advice: str = "") -> str:
    wanted = _required(need)
    if need.generated_tokens < wanted:
        what = f"scores a continuation of {wanted} tokens"
        other = "shorten its data"
    else:
        what = (
            f"needs {wanted} tokens, a prompt of {need.prompt_tokens} and {need.new_tokens} new "
            "ones (max_gen_toks)"
        )
        other = "lower its generation_kwargs.max_gen_toks"
    return f"--tasks: the task {need.task} {what}, and {limit}: {advice}{other}"
