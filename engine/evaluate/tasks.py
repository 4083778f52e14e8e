"""Loads lm-eval tasks with their data, by name or by YAML file.

A file's data lies beside it: relative `data_files` are made absolute, as lm-eval expects them, and
nothing is downloaded. A name is one of lm-eval's own tasks and works if its data can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import jinja2
import yaml
from datasets.exceptions import DatasetsError
from lm_eval.tasks import TaskManager

from engine.contract.requests import TaskOptions
from engine.errors import TaskError

ChatTemplate = Callable[..., str]
_OUTSIDE = (OSError, httpx2.HTTPError)
_WRONG = (ValueError, LookupError, TypeError, DatasetsError, jinja2.TemplateError)


@dataclass(frozen=True)
class LoadedTasks:
    """tasks, groups: as lm-eval's own evaluate takes them; requests: their total number."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    requests: int


def load_tasks(
    names: list[str], options: TaskOptions, chat_template: ChatTemplate | None = None
) -> LoadedTasks:
    """Read tasks and data, apply the options, count the requests.

    chat_template: renders turns, if the options ask for a template. Raises TaskError for a file
    that is not a task, a name that lm-eval does not know, data that cannot be reached, a task
    without items, and a task that needs an unsupported feature.
    """
    if not names:
        raise TaskError("no task was named: add --tasks")
    if options.limit is not None and options.limit < 1:
        raise TaskError(f"a limit of {options.limit} items leaves nothing to evaluate: 1 or more")
    specs = [read_task(Path(n)) if n.endswith((".yaml", ".yml")) else n for n in names]
    own = [spec for spec in specs if isinstance(spec, str)]
    manager = TaskManager(include_defaults=bool(own))
    unknown = [spec for spec in own if spec not in manager.all_tasks]
    if unknown:
        raise TaskError(
            f"lm-eval knows no task '{unknown[0]}': see `lm_eval ls tasks`, or give the path of a "
            "task's YAML file"
        )
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}}
    for name, spec in zip(names, specs, strict=True):
        found = _load(manager, name, spec)
        for kind in ("tasks", "groups"):
            loaded[kind].update(found[kind])
    requests = 0
    for name, task in loaded["tasks"].items():
        _check_runs(name, task)
        _lay_over(task, options)
        requests += _count_requests(name, task, options, chat_template)
        task.set_fewshot_seed(seed=options.seed)
    return LoadedTasks(loaded["tasks"], loaded["groups"], requests)


def unknown_tasks(names: Sequence[str]) -> list[str]:
    """The names that are neither task files nor lm-eval's own tasks and groups."""
    own = [name for name in names if not name.endswith((".yaml", ".yml"))]
    if not own:
        return []
    known = TaskManager(include_defaults=True)
    return [name for name in own if name not in known.all_tasks]


def read_task(path: Path) -> dict[str, Any]:
    """Read one task file and make its data files absolute."""
    try:
        task = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TaskError(f"the task file {path} cannot be read: {error}") from None
    if not isinstance(task, dict) or "task" not in task:
        raise TaskError(f"{path} is no lm-eval task: it names no `task`")
    files = task.get("dataset_kwargs", {}).get("data_files")
    if isinstance(files, dict):
        for split, name in files.items():
            data = path.parent.joinpath(name).resolve()
            if not data.is_file():
                raise TaskError(f"{path}: its data file {data} does not exist")
            if not data.stat().st_size:
                raise TaskError(f"{path}: its data file {data} is empty")
            files[split] = str(data)
    return task


def _load(manager: TaskManager, name: str, spec: str | dict[str, Any]) -> Any:
    try:
        return manager.load([spec])
    except ImportError as error:
        raise TaskError(f"the task {name} needs a package: {_first_line(error)}") from None
    except _OUTSIDE as error:
        raise TaskError(
            f"the data of {name} cannot be reached ({_first_line(error)}): go online or download "
            "the data set first, or use local tasks"
        ) from None
    except _WRONG as error:
        raise TaskError(
            f"the task {name} cannot be loaded ({type(error).__name__}: {_first_line(error)}): it "
            "has no items, or its YAML and its data do not agree"
        ) from None


def _check_runs(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"the task {name} runs code that a model wrote, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"the task {name} shows images, and only text is evaluated here")
    if not len(task.eval_docs):
        raise TaskError(f"the task {name} has no items: mend its data")


def _lay_over(task: Any, options: TaskOptions) -> None:
    """Applies the options as lm-eval does: a task that says 0 examples stays at 0."""
    own = task.get_config("num_fewshot")
    if options.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=options.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=options.seed)


def _count_requests(
    name: str, task: Any, options: TaskOptions, chat_template: ChatTemplate | None
) -> int:
    """Build the requests once to count them, which also shows whether they can be built."""
    shots = task.get_config("num_fewshot")
    try:
        task.build_all_requests(
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            chat_template=chat_template,
        )
    except (*_WRONG, AttributeError) as error:
        raise TaskError(
            f"the task {name} with {shots} examples before each item cannot be prepared "
            f"({type(error).__name__}: {_first_line(error)}): fewer examples may help, or its "
            "YAML and its data do not agree"
        ) from None
    return sum(instance.repeats or 1 for instance in task.instances)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
