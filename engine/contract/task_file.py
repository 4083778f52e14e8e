"""An lm-eval task file as it is written: its keys, where they stand, and the files it depends on.

In: a YAML path. Out: a TaskFile, in which a `!function` is only a name: nothing is run here, so
that the tuner can ask what a quality depends on. Raises TaskError for a file that cannot be read.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import TaskError
from engine.inputs.bounded_yaml import MOST_YAML_BYTES, BoundedYaml
from engine.inputs.bounds import read_bounded

SUFFIXES = (".yaml", ".yml")
MOST_SOURCES = 100  # files that one task includes
_MADE_OF = ("dataset_path", "output_type", "doc_to_text", "doc_to_target")


@dataclass(frozen=True)
class FunctionName:
    """A `!function module.name`, and the folder of the file that says so."""

    name: str
    folder: Path

    @property
    def module(self) -> Path | None:
        """The module's file beside the task file; None if it is an installed module."""
        stem = self.name.rpartition(".")[0].replace(".", "/")
        path = self.folder / f"{stem}.py"
        return path.resolve() if stem and os.path.isfile(path) else None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class TaskFile:
    """One task or group. body: its keys, over those of the files it includes; folders: where each
    key was written; sources: the YAML files that were read, itself first."""

    path: Path
    body: Mapping[str, Any]
    folders: Mapping[str, Path]
    sources: tuple[Path, ...]

    @property
    def name(self) -> str:
        """The group's name, else the task's."""
        return str(self.body.get("group", self.body.get("task")))

    @property
    def is_group(self) -> bool:
        """Whether it lists tasks instead of being one."""
        return "group" in self.body

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags under which this task can be asked for together with others."""
        given = self.body.get("tag") or ()
        return (given,) if isinstance(given, str) else tuple(map(str, given))

    @property
    def folder(self) -> Path:
        """Where a group's members are looked for."""
        return self.path.parent


def is_task_file(name: str) -> bool:
    """Whether a task is given as a file rather than by lm-eval's name."""
    return name.endswith(SUFFIXES)


def read_task_file(path: Path) -> TaskFile:
    """Reads a task file and what it includes; a key of its own replaces an included one."""
    body, folders, sources = _read(path.resolve(), ())
    _check_types(path, body)
    if "task" not in body and "group" not in body:
        raise TaskError(f"{path} is no lm-eval task: it names no `task` and no `group`")
    listed = body.get("task")
    if isinstance(listed, int | float):
        listed = body["task"] = str(listed)
    if "group" not in body and isinstance(listed, list):
        body["group"] = path.stem
    if "group" in body and isinstance(listed, str):
        if any(key in body for key in _MADE_OF):  # before there were tags, a group was one
            body.setdefault("tag", body.pop("group"))
        else:
            body["task"] = [listed]
    return TaskFile(path.resolve(), body, folders, sources)


def tasks_beside(folder: Path) -> dict[str, TaskFile]:
    """The tasks and groups of all task files in and below a folder, by name; other files are
    passed over."""
    found: dict[str, TaskFile] = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            one = read_task_file(path)
        except TaskError:
            continue
        found.setdefault(one.name, one)
    return found


def members(group: Mapping[str, Any]) -> Iterator[str | Mapping[str, Any]]:
    """The members of a group, those of its inline groups too: names, or inline tasks."""
    named = group.get("task") or ()
    for one in (named,) if isinstance(named, str) else named:
        if (
            isinstance(one, Mapping)
            and ("group" in one or isinstance(one.get("task"), list))
            and "task" in one
        ):
            yield from members(one)
        elif isinstance(one, Mapping) and "group" in one:
            yield str(one["group"])
        else:
            yield one if isinstance(one, Mapping) else str(one)


@dataclass
class Membership:
    """What the names in a group stand for. files: task files beside it by name, its groups' members
    included; tagged: the names of those that a tag stands for; outside: names that no file beside
    it declares, each with the group that says so."""

    files: dict[str, TaskFile] = field(default_factory=dict)
    tagged: dict[str, list[str]] = field(default_factory=dict)
    outside: dict[str, Path] = field(default_factory=dict)

    def add(self, group: TaskFile) -> None:
        """Looks up the members of a group."""
        named = [member_name(one) for one in members(group.body) if not is_inline(one)]
        beside = tasks_beside(group.folder) if named else {}
        for name in named:
            found = [task for task, file in beside.items() if name in (task, *file.tags)]
            if name in beside:
                found = [name]
            elif found:
                self.tagged[name] = found
            else:
                self.outside.setdefault(name, group.path)
            for file in (beside[task] for task in found):
                self._keep(file, group)

    def _keep(self, file: TaskFile, group: TaskFile) -> None:
        if file.path != group.path and file.name not in self.files:
            self.files[file.name] = file
            if file.is_group:
                self.add(file)


def with_members(task: TaskFile) -> tuple[TaskFile, ...]:
    """A task file, and if it is a group those of its members, by name."""
    found = Membership()
    if task.is_group:
        found.add(task)
    return (task, *(found.files[name] for name in sorted(found.files)))


def is_inline(member: str | Mapping[str, Any]) -> bool:
    """Whether a group's member is a whole task instead of the name of one."""
    return isinstance(member, Mapping) and ("dataset_path" in member or "custom_dataset" in member)


def member_name(member: str | Mapping[str, Any]) -> str:
    """The name of a group's member."""
    return member if isinstance(member, str) else str(member.get("task"))


def functions(value: Any) -> Iterator[FunctionName]:
    """Every `!function` in a task's keys."""
    if isinstance(value, FunctionName):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from functions(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from functions(one)


def modules(names: Iterable[FunctionName]) -> tuple[Path, ...]:
    """The Python files beside the task file that these functions come from, and those beside
    them that they import."""
    found: list[Path] = []
    waiting = [path for name in names if (path := name.module) is not None]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            waiting += _imported(path)
    return tuple(sorted(found))


def listed(value: Any) -> list[str]:
    """A value that may be one text, several or none, as a list."""
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]


_MAPPING, _LIST, _NAMES = "keys and values", "a list", "a name or a list of names"


def _check_types(path: Path, body: Mapping[str, Any]) -> None:
    """Raises TaskError for the values that a task's files are looked for with, if they are of other
    types; lm-eval says what is wrong with the others."""
    kwargs = body.get("dataset_kwargs")
    _require(kwargs is None or isinstance(kwargs, Mapping), path, "dataset_kwargs", _MAPPING)
    if kwargs and kwargs.get("data_files") is not None:
        given = kwargs["data_files"]
        splits = list(given.values()) if isinstance(given, Mapping) else [given]
        _require(all(map(_is_names, splits)), path, "data_files", _NAMES)
    tags = _each(body.get("tag"))
    _require(all(isinstance(one, str) for one in tags), path, "tag", _NAMES)
    metrics = body.get("metric_list")
    _require(metrics is None or isinstance(metrics, list), path, "metric_list", _LIST)
    _require(all(isinstance(one, Mapping) for one in metrics or ()), path, "metric_list", _MAPPING)
    tasks = body.get("task")
    _require(tasks is None or isinstance(tasks, str | int | float | list), path, "task", _NAMES)
    for one in tasks if isinstance(tasks, list) else ():
        _require(isinstance(one, str | int | float | Mapping), path, "task", _NAMES)
        if isinstance(one, Mapping):
            _check_types(path, one)


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_names(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, str | int | float) for one in names)


def _require(holds: bool, path: Path, key: str, wanted: str) -> None:
    if not holds:
        raise TaskError(f"{path}: its {key} must be {wanted}: see lm-eval's guide to task files")


def _check_keys(path: Path, value: Any) -> None:
    """Raises TaskError for keys of several types in one place, such as 1 beside a text, and for
    keys that JSON has not, such as functions and bytes."""
    inside = value.values() if isinstance(value, Mapping) else value
    kinds = {type(key) for key in value} if isinstance(value, Mapping) else set()
    if len(kinds) > 1 or not kinds <= {str, int, float, bool, type(None)}:
        other = next(key for key in value if not isinstance(key, str))
        raise TaskError(f"{path}: its key {other!s:.40} is no text: write it in quotes")
    for one in inside if isinstance(value, Mapping | list) else ():
        _check_keys(path, one)


def _read(
    path: Path, above: tuple[Path, ...]
) -> tuple[dict[str, Any], dict[str, Path], tuple[Path, ...]]:
    if path in above:
        raise TaskError(f"the task file {path} includes itself")
    own = _parsed(path)
    included = own.pop("include", None)
    body: dict[str, Any] = {}
    folders: dict[str, Path] = {}
    sources: tuple[Path, ...] = (path,)
    for name in listed(included):
        inner, places, read = _read(_included(path, name), (*above, path))
        inner.pop("task_list", None)
        body.update(inner)
        folders.update(places)
        sources += read
        if len(sources) > MOST_SOURCES:
            raise TaskError(f"the task file {path} includes more than {MOST_SOURCES} files")
    body.update(own)
    folders.update(dict.fromkeys(own, path.parent))
    return body, folders, sources


def _included(path: Path, name: str) -> Path:
    try:
        return (path.parent / name).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a zero character
        raise TaskError(f"the task file {path} includes {name!r:.200}, which is no file") from None


def _parsed(path: Path) -> dict[str, Any]:
    class Loader(BoundedYaml):
        """Safe YAML in which `!function` is a name."""

    def name_of(loader: yaml.SafeLoader, node: yaml.Node) -> FunctionName:
        return FunctionName(str(loader.construct_scalar(node)), path.parent)  # type: ignore[arg-type]

    Loader.add_constructor("!function", name_of)
    try:
        body = yaml.load(read_bounded(path, MOST_YAML_BYTES), Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TaskError(f"the task file {path} cannot be read: {reason}") from None
    if not isinstance(body, dict):
        raise TaskError(f"{path} is no lm-eval task: it holds no keys and values")
    _check_keys(path, body)
    if other := [key for key in body if not isinstance(key, str)]:
        raise TaskError(f"{path}: its key {other[0]!s:.40} is no text: write it in quotes")
    return body


def _imported(path: Path) -> list[Path]:
    """The files beside a module that it imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update({node.module or "", *(one.name for one in node.names)})
    places = [path.parent / f"{name.replace('.', '/')}.py" for name in names if name]
    return [place.resolve() for place in places if place.is_file()]
