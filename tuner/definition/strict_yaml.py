"""Reads YAML strictly through pydantic: every error is one sentence that names the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from engine.errors import nearest_hint
from tuner.errors import DefinitionError, UsageError


class Strict(BaseModel):
    """A frozen model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=Strict)


def load_yaml(path: Path, error: type[UsageError] = DefinitionError) -> Any:
    """Loads safe YAML from a file; raises `error` with one sentence if it cannot be read."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path), error)
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path} is not text in UTF-8") from None


def parse_yaml(text: str, source: str, error: type[UsageError] = DefinitionError) -> Any:
    """Parses safe YAML from text; tags that would build objects are refused."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(problem, "problem", None) or "not readable"
        raise error(f"{source}{where} is not safe YAML: {what}") from None


def read_strict(
    model: type[M], data: Any, source: str, error: type[UsageError] = DefinitionError
) -> M:
    """Validates data as `model`; raises `error` with one sentence naming the place and what is
    allowed."""
    if not isinstance(data, dict):
        raise error(f"{source} must hold keys and values, such as `{_first_key(model)}: ...`")
    try:
        return model.model_validate(data)
    except ValidationError as problem:
        raise error(f"{source}: {_sentence(model, problem)}") from None


def _sentence(model: type[BaseModel], problem: ValidationError) -> str:
    parts = []
    for detail in problem.errors(include_url=False)[:3]:
        place = ".".join(str(step) for step in detail["loc"])
        if detail["type"] == "extra_forbidden":
            parts.append(_unknown_key(model, detail["loc"]))
        elif detail["type"] == "missing":
            parts.append(f"'{place}' is missing")
        else:
            reason = detail["msg"].removeprefix("Value error, ")
            given = repr(detail["input"])
            parts.append(f"{place} = {given[:80]}: {reason}")
    return "; ".join(parts)


def _unknown_key(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    allowed = sorted(_keys_at(model, place[:-1]))
    key = str(place[-1])
    full = ".".join(map(str, place))
    return f"there is no key '{full}'{nearest_hint(key, allowed)} (allowed: {', '.join(allowed)})"


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> set[str]:
    owner = model
    for step in place:
        found = owner.model_fields.get(str(step))
        if found is None:
            continue
        inner = _model_in(found.annotation)
        if inner is not None:
            owner = inner
    return {field.alias or name for name, field in owner.model_fields.items()}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        inner = _model_in(argument)
        if inner is not None:
            return inner
    return None


def _first_key(model: type[BaseModel]) -> str:
    return next(iter(model.model_fields))
