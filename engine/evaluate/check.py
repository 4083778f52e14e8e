"""Everything that can be known of a study's tasks before its first trial, with no model at hand.

In: a tokenizer, the tasks and their options. Out: the tokens that each task needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.contract.requests import TaskNeed, TaskOptions
from engine.errors import TaskError
from engine.evaluate.generation import read_generation
from engine.evaluate.rehearsal import rehearse
from engine.evaluate.results import BITS_PER_BYTE
from engine.evaluate.tasks import load_tasks
from engine.evaluate.text_model import TextModel


def check_tasks(
    tokenizer: Any, model: str, names: Sequence[str], options: TaskOptions
) -> tuple[TaskNeed, ...]:
    """Loads the tasks, builds every request and scores made-up answers.

    model: its id, for messages. Raises TaskError for whatever would fail in every trial.
    """
    reader = _Reader(tokenizer, model, tuple)
    template = None
    if options.apply_chat_template:
        require_template(tokenizer, model)
        template = reader.apply_chat_template
    loaded = load_tasks(names, options, template)
    needs = tuple(_need(name, task.instances, reader) for name, task in loaded.tasks.items())
    metrics = [rehearse(name, task) for name, task in loaded.tasks.items()]
    if names_none := [name for name, found in zip(loaded.tasks, metrics, strict=True) if not found]:
        raise TaskError(f"the task {names_none[0]} has no metric: list some in its metric_list")
    for name, task in loaded.tasks.items():
        _require_answers(name, task)
    if not any(
        metric == BITS_PER_BYTE or better is not False
        for found in metrics
        for metric, better in found.items()
    ):
        told = ", ".join(sorted({metric for found in metrics for metric in found}))
        raise TaskError(
            f"of {told}, which {', '.join(loaded.tasks)} give, none can be compared: add the "
            "metric bits_per_byte, or one of which more is better, such as acc"
        )
    return needs


def _require_answers(name: str, task: Any) -> None:
    """Raises TaskError if no item's target is one of its choices, where lm-eval counts every answer
    as wrong."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.get_config("process_results") is not None:
        return
    if not any(_is_among(task, doc) for doc in task.eval_docs):
        raise TaskError(
            f"the task {name}: the target of no item is one of its choices: mend its doc_to_target "
            "(a choice or its number, from 0) or its doc_to_choice"
        )


def _is_among(task: Any, doc: Any) -> bool:
    several = getattr(task, "multiple_input", False)  # the context is what is chosen
    gold = task.doc_to_text(doc) if several else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)
    return any(
        one < len(choices) if isinstance(one, int) else one in choices
        for one in (gold if isinstance(gold, list) else [gold])
    )


def require_template(tokenizer: Any, model: str) -> None:
    """Raises TaskError if the tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            f"the tokenizer of {model} has no chat template: leave out "
            "quality.apply_chat_template, or put a chat_template.jinja beside its config.json"
        )


def empty_text(request: Any) -> TaskError:
    """The error for a request to score a text without characters."""
    name = getattr(request, "task_name", None) or "a task"
    return TaskError(
        f"{name}, item {getattr(request, 'doc_id', '?')}, asks to score an empty text: mend its "
        "YAML or its data"
    )


def empty_prompt(request: Any) -> TaskError:
    """The error for a request to continue a text without tokens."""
    return TaskError(
        f"{request.task_name}, item {request.doc_id}, asks to continue an empty prompt: mend its "
        "doc_to_text or its data"
    )


class _Reader(TextModel):
    """Counts tokens; the requests themselves are never sent to it."""

    def loglikelihood_rolling(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    generate_until = _loglikelihood_tokens = loglikelihood_rolling


def _need(name: str, requests: Sequence[Any], reader: TextModel) -> TaskNeed:
    prompt = new = scored = target = 0
    contexts: dict[str, int] = {"": 0}  # choices share theirs
    for request in requests:
        if request.request_type == "generate_until":
            context, given = request.args
            settings = read_generation(given, name)
            length = len(reader.tok_encode(context))
            if not length:
                raise empty_prompt(request)
            if length + settings.new_tokens > prompt + new:
                prompt, new = length, settings.new_tokens
            continue
        if not request.args[-1]:
            raise empty_text(request)
        if request.request_type == "loglikelihood":
            context, continuation = request.args
            whole = len(reader.tok_encode(context + continuation))
            start = context.rstrip()
            if start not in contexts:
                contexts = {"": 0, start: len(reader.tok_encode(start))}
            scored, target = max(scored, whole), max(target, whole - contexts[start])
    return TaskNeed(name, prompt, new, scored, target)
