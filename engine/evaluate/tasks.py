"""lm-eval tasks by name or by YAML file.

A file's data lies beside it: relative `data_files` are made absolute, as lm-eval wants them, and
nothing is downloaded. A name is one of lm-eval's own tasks and works where its data can be reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from engine.errors import UsageError


def load_tasks(names: list[str]) -> tuple[list[str | dict[str, Any]], TaskManager]:
    """Task configs for lm-eval, and a manager that indexes its own tasks only if needed.

    Raises UsageError for a file that is no task and for a name that lm-eval does not know.
    """
    tasks: list[str | dict[str, Any]] = []
    for name in names:
        is_file = name.endswith((".yaml", ".yml"))
        tasks.append(read_task(Path(name)) if is_file else name)
    own = [task for task in tasks if isinstance(task, str)]
    manager = TaskManager(include_defaults=bool(own))
    unknown = [task for task in own if task not in manager.all_tasks]
    if unknown:
        raise UsageError(
            f"lm-eval knows no task '{unknown[0]}': see `lm_eval --tasks list`, or give the path "
            "of a task's YAML file"
        )
    return tasks, manager


def read_task(path: Path) -> dict[str, Any]:
    """One task file, its data files absolute."""
    try:
        task = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"the task file {path} cannot be read: {error}") from None
    if not isinstance(task, dict) or "task" not in task:
        raise UsageError(f"{path} is no lm-eval task: it names no `task`")
    files = task.get("dataset_kwargs", {}).get("data_files")
    if isinstance(files, dict):
        for split, name in files.items():
            data = path.parent.joinpath(name).resolve()
            if not data.is_file():
                raise UsageError(f"{path}: its data file {data} does not exist")
            files[split] = str(data)
    return task
