"""Reads YAML strictly through pydantic: every error is one sentence that names the nearest key.

What dump_yaml writes, parse_yaml reads back unchanged, whatever Unicode it holds.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from engine.errors import nearest_hint
from engine.inputs.bounded_yaml import MOST_YAML_BYTES, BoundedYaml
from engine.types import shown
from tuner.definition.text import join_surrogates, read_text
from tuner.errors import DefinitionError, UsageError

# Without double quotes, PyYAML writes these as line breaks and reads a space, or drops them.
_NEEDS_ESCAPE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]"
)


_LONGEST_PLACE, _LONGEST_REASON = 200, 500  # in a message
_TYPE_NAME = re.compile(r"str|int|float|bool|list\[.*\]")  # how pydantic names a union's members


class Strict(BaseModel):
    """A frozen model that rejects unknown keys, and true and false where a number is wanted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = set(get_args(annotation) or (annotation,))
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("a number is wanted, not yes or no")
        return value


M = TypeVar("M", bound=Strict)


class _Loader(BoundedYaml):
    """Safe YAML within bounds, whose texts have no halves of surrogate pairs. 1:30, 010 and
    2026-11-29 stay texts, which YAML 1.1 reads as 90, 8 and a date."""

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        """An integer; minutes by colons and octal numbers stay the text that was written."""
        text = str(self.construct_scalar(node))
        odd = ":" in text or re.fullmatch(r"[-+]?0[0-9_]+", text)
        return text if odd else int(self.construct_yaml_int(node))

    def construct_fraction(self, node: yaml.ScalarNode) -> float | str:
        """A float; minutes by colons stay text."""
        text = str(self.construct_scalar(node))
        return text if ":" in text else float(self.construct_yaml_float(node))

    def construct_text(self, node: yaml.ScalarNode) -> str:
        """A text whose escaped surrogate pairs are characters."""
        return join_surrogates(str(self.construct_scalar(node)), "a text")


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML would change."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """A text, in double quotes with escapes where it needs them."""
        style = '"' if _NEEDS_ESCAPE.search(text) else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)


class _CompactDumper(_Dumper):
    """Writes innermost mappings in a line."""

    def represent_compact(self, data: dict[Any, Any]) -> yaml.MappingNode:
        """A mapping, in braces if all of its values are scalars or empty."""
        node = self.represent_dict(data)
        if node.value and not any(
            value and isinstance(value, dict | list) for value in data.values()
        ):
            node.flow_style = True
        return node


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_fraction)
_Dumper.add_representer(str, _Dumper.represent_text)
_CompactDumper.add_representer(str, _Dumper.represent_text)
_CompactDumper.add_representer(dict, _CompactDumper.represent_compact)


def load_yaml(path: Path, error: type[UsageError] = DefinitionError) -> Any:
    """Loads safe YAML from a file; raises `error` with one sentence if it cannot be read."""
    return parse_yaml(read_text(path, error, MOST_YAML_BYTES), str(path), error)


def parse_yaml(text: str, source: str, error: type[UsageError] = DefinitionError) -> Any:
    """Parses safe YAML from text; tags that would build objects, keys that stand twice in one
    mapping, and what BoundedYaml bounds are refused."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = str(getattr(problem, "problem", None) or getattr(problem, "reason", "not readable"))
        what += ": indent with spaces, not tabs" if "'\\t'" in what else ""
        raise error(f"{source}{where} is not safe YAML: {what}") from None
    except UsageError as problem:
        raise error(f"{source}: {problem}") from None


def dump_yaml(data: Any, *, compact: bool = False) -> str:
    """Dumps plain data in its order; non-ASCII text is written as it is where YAML keeps it.
    compact: mappings that hold no further ones, and no lists, are written in a line."""
    dumper, width = (_CompactDumper, 120) if compact else (_Dumper, 100)
    return yaml.dump(data, Dumper=dumper, sort_keys=False, allow_unicode=True, width=width)


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
    for where, detail in _by_place(problem)[:3]:
        place = shown(where, _LONGEST_PLACE)
        if detail["type"] == "extra_forbidden":
            parts.append(_unknown_key(model, detail["loc"]))
        elif detail["type"] == "missing":
            parts.append(f"'{place}' is missing")
        elif detail["type"] == "model_type":
            keys = ", ".join(sorted(_keys_at(model, detail["loc"])))
            parts.append(f"{place} = {detail['input']!r:.80} must be a mapping with keys of {keys}")
        else:
            reason = shown(detail["msg"].removeprefix("Value error, "), _LONGEST_REASON)
            given = repr(detail["input"])
            parts.append(f"{place} = {given[:80]}: {reason}" if place else reason)
    return "; ".join(parts)


def _by_place(problem: ValidationError) -> list[tuple[str, Any]]:
    """Each error with its place; of a field of several types only the deepest, without the types'
    names."""
    found: dict[str, Any] = {}
    for detail in problem.errors(include_url=False):
        steps = [str(step) for step in detail["loc"]]
        place = ".".join(one for one in steps if not _TYPE_NAME.fullmatch(one))
        found.setdefault(place, detail)
    return [
        (place, detail)
        for place, detail in found.items()
        if not any(other.startswith(f"{place}.") for other in found)
    ]


def _unknown_key(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    allowed = sorted(_keys_at(model, place[:-1]))
    key = str(place[-1])
    full = shown(".".join(map(str, place)), _LONGEST_PLACE)
    if len(place) == 1 and (inside := _nested(model, key)):
        return f"there is no key '{full}'; it stands in a mapping: {inside}"
    return f"there is no key '{full}'{nearest_hint(key, allowed)} (allowed: {', '.join(allowed)})"


def _nested(model: type[BaseModel], key: str) -> str | None:
    """`budget: {vram_bytes: ...}` for vram, which people write at the top."""
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        for own in inner.model_fields if inner is not None else ():
            if key in (own, own.rpartition("_")[0]):
                return f"`{name}: {{{own}: ...}}`"
    return None


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
    name, field = next(iter(model.model_fields.items()))
    return field.alias or name
