"""What the values of a store must be for its readers; SQLite itself keeps whatever is written.

In: rows, and what their JSON holds. Raises StoreError that names the row, what is wrong with it,
and what to try.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from engine.contract.report import ExpertUse, QualityReport
from engine.contract.requests import Workload
from engine.derived.file import CONTENT_ERRORS
from engine.facts.model import ModelFacts
from engine.inputs.bounds import MOST_DEPTH, check_depth
from engine.inputs.typed import check_types
from tuner.definition.objectives import objective_names
from tuner.definition.study import Budget, Constraints
from tuner.errors import StoreError

LARGEST = 1e100  # of a figure: its square is a number too
TRY = "see `tune doctor --store`, restore a copy, or name another database with --storage"
LISTS = ("docs", "values")  # columns of lists; other JSON columns hold objects


def damaged(what: str, wrong: object) -> StoreError:
    """The error for a row that cannot be read."""
    said = " ".join(str(wrong).split())
    return StoreError(f"the database holds no {what:.100} that can be read ({said:.300}): {TRY}")


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Raises StoreError if what a row holds is not what is read out of it. what: the row."""
    try:
        yield
    except CONTENT_ERRORS as error:
        raise damaged(what, error) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON column, as the driver calls it."""
    with readable("JSON value"):
        value = json.loads(text)
        if isinstance(text, bytes) or text.count("{") + text.count("[") > MOST_DEPTH:
            check_depth(value)
        if (
            isinstance(text, bytes) or "\\ud" in text.lower()
        ):  # half of a pair, which nothing can send on
            json.dumps(value, ensure_ascii=False).encode()
        return value


def check_row(row: Any) -> None:
    """Raises StoreError for a value of another type than its column's, as the mapper calls it."""
    table = row.__table__
    for column in table.columns:
        value = row.__dict__.get(column.key)
        if value is None:
            if not column.nullable and column.key in row.__dict__:
                raise damaged(f"row of '{table.name}'", f"its {column.key} is missing")
        elif not is_of_type(column, value):
            raise damaged(f"row of '{table.name}'", f"its {column.key} is {value!r:.40}")


def is_of_type(column: sa.Column[Any], value: Any) -> bool:
    """Whether a value that was read is one of this column's type."""
    kind = column.type
    if isinstance(kind, sa.JSON):
        return isinstance(value, list if column.key in LISTS else dict)
    if isinstance(kind, sa.Integer):
        return type(value) is int
    if isinstance(kind, sa.Float):
        return _is_figure(value)
    if isinstance(kind, sa.String):
        return isinstance(value, str)
    return isinstance(value, datetime)  # Moment is the only other kind


def check_numbers(place: str, values: Any) -> None:
    """Raises ValueError unless these are figures by name."""
    _require(isinstance(values, dict), place, "keys and values")
    for name, value in values.items():
        _require(_is_figure(value), f"{place}.{name}", "a figure")


def check_study(definition: Any, workload: Any, facts: Any, progress: Any, spent: Any) -> None:
    """Raises one of CONTENT_ERRORS for what no study of ours says of itself."""
    for name in ("model", "device"):
        _require(isinstance(definition[name], str), f"definition.{name}", "a text")
    _require(type(definition["seed"]) is int, "definition.seed", "a whole number")
    objectives = definition["objectives"]
    _require(isinstance(objectives, list), "definition.objectives", "a list")
    _require(objective_names(objectives) == objectives, "definition.objectives", "names of ours")
    Constraints.model_validate(definition["constraints"])
    Budget.model_validate(definition["budget"], strict=True)
    check_types(Workload.from_json(workload), "workload.")
    ModelFacts.from_json(facts)
    check_numbers("spent", {} if spent is None else spent)
    _require(progress is None or isinstance(progress, dict), "progress", "keys and values")


def check_machine(description: Any) -> None:
    """Raises ValueError for a machine whose GPUs are not what is shown of them."""
    gpus = description.get("gpus", [])
    _require(isinstance(gpus, list), "gpus", "a list")
    for gpu in gpus:
        _require(isinstance(gpu, dict), "a GPU", "keys and values")
        size = gpu.get("total_bytes")
        _require(size is None or type(size) is int, "total_bytes of a GPU", "a whole number")


def check_trial(row: Any) -> None:
    """Raises ValueError for what no trial of ours holds."""
    for name in ("scores", "violations"):
        check_numbers(name, getattr(row, name))
    for name in ("bounds", "predicted"):
        check_numbers(name, getattr(row, name) or {})


def check_config(config: Any) -> None:
    """Raises one of CONTENT_ERRORS for a configuration without what every one has."""
    _require(isinstance(config["device"]["name"], str), "device.name", "a text")
    size = config["budget"]["vram_bytes"]
    _require(type(size) is int, "budget.vram_bytes", "a whole number")


def check_items(docs: Any, values: Any) -> None:
    """Raises ValueError unless these are item numbers of a task, and figures."""
    _require(all(type(doc) is int for doc in docs), "the number of an item", "a whole number")
    _require(all(map(_is_figure, values)), "the value of an item", "a figure")


def quality_report(row: Any) -> QualityReport:
    """The report of a quality_result row, without its items."""
    with readable(f"quality result {row.id}"):
        found = QualityReport.from_json(row.report)
        check_types(found)
        return found


def expert_use(counts: Any) -> ExpertUse:
    """Expert use as a row counts it."""
    with readable("expert use"):
        found = ExpertUse.from_json(counts)
        check_types(found)
        layers = len(found.activations)
        rows = (found.hits, found.misses, found.predicted, found.predicted_demanded)
        _require(all(len(row) == layers for row in rows), "each of its counts", "of every layer")
        experts = {len(row) for row in found.activations}
        _require(len(experts) < 2, "each of its layers", "of as many experts")
        return found


def check_figures(what: str, rows: Sequence[Sequence[Any]], *columns: int) -> None:
    """Raises StoreError unless these columns are figures, of rows read without the mapper."""
    for row in rows:
        for column in columns:
            if not _is_figure(row[column]):
                raise damaged(what, f"a figure of it is {row[column]!r:.40}")


def _is_figure(value: Any) -> bool:
    """Whether a value is a number that can be computed with; NaN and infinity are none."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def _require(holds: bool, place: str, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{place} is not {wanted}")
