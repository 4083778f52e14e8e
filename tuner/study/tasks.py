"""The lm-eval tasks of a study: the default task, and a check of the named ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tuner.definition.study import StudyDefinition
from tuner.engine_client.session import EngineSession
from tuner.errors import StudyError, UsageError, WorkerError
from tuner.folders import studies_folder
from tuner.quality.judge import PASSING

log = logging.getLogger(__name__)

DEFAULT_LIMIT = 40


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


def check_tasks(definition: StudyDefinition, session: EngineSession) -> None:
    """Raises UsageError for a task that lm-eval does not know: it would fail every trial.

    If the engine dies of the question twice, the check is skipped and the trials will show it.
    """
    if "quality" not in definition.objectives:
        return
    unknown: Sequence[str] = ()
    for _ in range(2):
        try:
            unknown = session.unknown_tasks(definition.quality.tasks)
            break
        except WorkerError as error:
            if error.failure not in PASSING:
                raise
            log.warning("whether lm-eval knows the tasks could not be asked: %s", error)
    if unknown:
        raise UsageError(
            f"--tasks: lm-eval knows no task '{unknown[0]}': see `lm_eval ls tasks`, or give the "
            "path of a task's YAML file"
        )
