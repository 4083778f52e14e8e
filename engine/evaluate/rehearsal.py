"""Scores made-up answers to the first items of a task, so that its own code fails before a study.

A task is refused only if no answer to any item can be scored: one that stumbles over some answers
does so in lm-eval too, and may not in the study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from engine.evaluate.task_code import explained, user_frame

ITEMS, TAKES = 3, 3
_ADVICE = "mend its metrics, filters or process_results"


def rehearse(name: str, task: Any) -> dict[str, bool | None]:
    """Filters, scores and aggregates made-up answers. Returns the metrics that came of it, and
    whether more is better (None: not said).

    Raises TaskError if that is impossible. The task's requests, which must be built, are spent
    afterwards.
    """
    values: dict[str, list[Any]] = defaultdict(list)
    first: BaseException | None = None
    for take in range(TAKES):
        for failure in _scored(task, take, values):
            first = first or failure
    if first is not None and not values:
        with explained(f"the task {name} cannot score an answer", _ADVICE):
            raise first
    for metric, found in values.items():
        aggregate = task.aggregation().get(metric)
        error = None if aggregate is None else _failure(aggregate, found)
        if error is not None and user_frame(error) is not None:
            with explained(f"the task {name} cannot aggregate {metric}", _ADVICE):
                raise error
    better = task.higher_is_better()
    return {metric: better.get(metric) for metric in values}


def _answer(task: Any, request: Any, take: int) -> Any:
    """One of three answers to a request, by its kind."""
    if request.request_type == "generate_until":
        return (_target(task, request), "", "The answer is 1.")[take]
    if request.request_type == "loglikelihood_rolling":
        return -10.0
    return (-1.0 - request.idx, False) if take else (-9.0 + request.idx, True)


def _target(task: Any, request: Any) -> str:
    target = task.doc_to_target(request.doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        target = task.doc_to_choice(request.doc)[target]
    return str(target[0] if isinstance(target, list) and target else target)


def _scored(task: Any, take: int, values: dict[str, list[Any]]) -> Iterator[BaseException]:
    """Adds the metrics of each item; yields what failed."""
    items: dict[int, list[Any]] = defaultdict(list)
    for request in task.instances:
        if request.doc_id in items or len(items) < ITEMS:
            items[request.doc_id].append(request)
    requests = [one for group in items.values() for one in group]
    error = _failure(_filter, task, take, requests)
    if error is not None:
        yield error
        return
    for group in items.values():
        for filtered in group[0].filtered_resps:
            replies = [one.filtered_resps[filtered] for one in group]
            error = _failure(_score, task, group[0], replies, values)
            if error is not None:
                yield error


def _filter(task: Any, take: int, requests: list[Any]) -> None:
    for request in requests:
        request.filtered_resps = {}
        request.resps = [_answer(task, request, take)] * (request.repeats or 1)
    for one in task._filters:
        one.apply(requests)


def _score(task: Any, request: Any, replies: list[Any], values: dict[str, list[Any]]) -> None:
    for metric, value in task.process_results(deepcopy(request.doc), replies).items():
        values[metric].append(value)


def _failure(run: Callable[..., Any], *given: Any) -> BaseException | None:
    """What a call of a task's code raises; the boundary of code that is not ours."""
    try:
        run(*given)
    except (Exception, SystemExit) as error:  # noqa: BLE001
        return error
    return None
