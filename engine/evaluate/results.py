"""Converts lm-eval's outcome to our values: metrics of each task and of each of its items."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from numbers import Real
from typing import Any

from engine.contract.report import TaskItems, TaskResult

BITS_PER_BYTE = "bits_per_byte"
# Metrics whose value for random guessing is one over the number of choices.
_GUESSED = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def task_results(outcome: Any, tasks: Mapping[str, Any]) -> tuple[TaskResult, ...]:
    """Every metric of every task and group. tasks: lm-eval's own, by name."""
    rows = []
    for name, values in outcome["results"].items():
        counted = outcome["n-samples"].get(name, {}).get("effective")
        n = values.get("sample_len", 0) if counted is None else counted
        chance = _chance(tasks[name], outcome["samples"][name]) if name in tasks else None
        better = outcome["higher_is_better"].get(name, {})
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            if not filter_name:
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                TaskResult(
                    task=name,
                    metric=_named(metric, filter_name),
                    value=float(value),
                    stderr=float(stderr) if isinstance(stderr, Real) else None,
                    n=int(n),
                    chance=chance if metric in _GUESSED else None,
                    higher_is_better=better.get(metric),
                    group=name not in tasks,
                )
            )
    return tuple(rows)


def task_items(outcome: Any) -> tuple[TaskItems, ...]:
    """The values of each item: numbers as they are, bits per byte of a text, nothing else."""
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for name, samples in outcome["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                value = _item_value(metric, sample[metric])
                if value is not None:
                    found[name, _named(metric, sample["filter"])][int(sample["doc_id"])] = value
    return tuple(
        TaskItems(task, metric, tuple(values), tuple(values.values()))
        for (task, metric), values in found.items()
    )


def rolling_texts(outcome: Any) -> list[str]:
    """The texts of the first rolling-likelihood task, in order."""
    for samples in outcome["samples"].values():
        texts = [sample["arguments"][0][0] for sample in samples if BITS_PER_BYTE in sample]
        if texts:
            return texts
    return []


def _named(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _chance(task: Any, samples: Any) -> float | None:
    if getattr(task, "OUTPUT_TYPE", "") != "multiple_choice" or not samples:
        return None
    fractions = [1 / len(task.doc_to_choice(sample["doc"])) for sample in samples]
    return sum(fractions) / len(fractions)


def _item_value(metric: str, value: Any) -> float | None:
    if isinstance(value, Real):
        return float(value)
    if metric == BITS_PER_BYTE:
        log_likelihood, size = value
        return -float(log_likelihood) / (float(size) * math.log(2))
    return None
