"""Loads lm-eval tasks with their data, by name or by YAML file, and counts their requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch

from engine.contract.requests import TaskOptions
from engine.errors import TaskError
from engine.evaluate.catalog import Catalog
from engine.evaluate.generation import read_generation
from engine.evaluate.task_code import explained

ChatTemplate = Callable[..., str]


@dataclass(frozen=True)
class LoadedTasks:
    """tasks, groups: as lm-eval's own evaluate takes them; requests: their total number."""

    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    requests: int


def load_tasks(
    names: Sequence[str], options: TaskOptions, chat_template: ChatTemplate | None = None
) -> LoadedTasks:
    """Read tasks and data, apply the options, count the requests.

    chat_template: renders turns, if the options ask for a template. Raises TaskError for a file
    that is not a task, a name that lm-eval does not know, code of a task that fails, data that
    cannot be reached, a task without items, and a task that needs an unsupported feature.
    """
    if not names:
        raise TaskError("no task was named: add --tasks")
    if options.limit is not None and options.limit < 1:
        raise TaskError(f"a limit of {options.limit} items leaves nothing to evaluate: 1 or more")
    seed_generators(options.seed)  # a task's own code may draw from them
    with nothing_remembered():
        loaded = _loaded(list(dict.fromkeys(names)))
        requests = 0
        for name, task in loaded["tasks"].items():
            _check_runs(name, task)
            _lay_over(task, options)
            requests += _count_requests(name, task, options, chat_template)
            task.set_fewshot_seed(seed=options.seed)
    return LoadedTasks(loaded["tasks"], loaded["groups"], requests)


def seed_generators(seed: int) -> None:
    """Seeds the global random generators, from which lm-eval's tasks draw."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def nothing_remembered() -> Iterator[None]:
    """Inside, a task's code runs as it is now.

    The data library keeps what a function made of a data set under the function's name, and would
    answer an edited one from that; lm-eval asks it again whenever it goes through a task's items.
    """
    was = datasets.is_caching_enabled()
    datasets.disable_caching()
    try:
        yield
    finally:
        if was:
            datasets.enable_caching()


def _loaded(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """lm-eval's tasks and groups by name. No task may come from two of the given names."""
    catalog = Catalog(names)
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    owners: dict[str, str] = {}
    for name in names:
        data = catalog.data(name)
        told = f" (data: {', '.join(map(str, data[:3]))})" if data else ""
        with explained(
            f"the task {name} cannot be loaded",
            f"it has no items, or its YAML and its data do not agree{told}",
            local=catalog.is_local(name),
        ):
            found = catalog.load(name)
        for task in found["tasks"]:
            if task in owners:
                raise TaskError(
                    f"the task {task} is asked for twice, by {owners[task]} and by {name}: leave "
                    "one out, or give one another name"
                )
            owners[task] = name
        if not found["tasks"]:
            raise TaskError(f"the group {name} has no tasks: list some under its `task`")
        loaded["tasks"].update(found["tasks"])
        loaded["groups"].update(found.get("groups", {}))
    return loaded


def _check_runs(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise TaskError(f"the task {name} runs code that a model wrote, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"the task {name} shows images, and only text is evaluated here")
    for key, least in (("repeats", 1), ("num_fewshot", 0)):
        given = task.get_config(key)
        if given is not None and (type(given) is not int or given < least):
            raise TaskError(
                f"the task {name}: {key} = {given!r} must be a whole number of {least} or more"
            )
    if not len(task.eval_docs):
        raise TaskError(f"the task {name} has no items: mend its data")
    if task.OUTPUT_TYPE == "generate_until":
        read_generation(task.get_config("generation_kwargs") or {}, name)


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
    with explained(
        f"the task {name} with {shots} examples before each item cannot be prepared",
        "fewer examples may help, or its YAML and its data do not agree",
        local=True,
    ):
        task.build_all_requests(
            limit=options.limit,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.fewshot_as_multiturn,
            chat_template=chat_template,
        )
    return sum(instance.repeats or 1 for instance in task.instances)
