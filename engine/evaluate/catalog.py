"""The tasks that names and task files stand for, ready for lm-eval's TaskManager.

A file is read with what it includes; its data is found beside it; its functions are resolved when
it is loaded. A group's members are looked for beside its file first, then among lm-eval's own.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from engine.contract.task_data import (
    FORMATS,
    data_folder,
    data_patterns,
    files_of,
    is_remote,
    matching,
    relative_to,
    search_folders,
)
from engine.contract.task_file import Membership, TaskFile, is_task_file, read_task_file
from engine.errors import TaskError, nearest_hint
from engine.evaluate.task_code import TaskCode


class Catalog:
    """Tasks by name. names: as the user gave them, lm-eval's names or paths of task files.

    Reading lm-eval's own names takes seconds, so that they are read only if one is asked for.
    Raises TaskError for a file that cannot be read and for a name that nothing declares.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._code = TaskCode()
        self._files = {name: read_task_file(Path(name)) for name in names if is_task_file(name)}
        found = Membership()
        for file in self._files.values():
            if file.is_group:
                found.add(file)
        own = [name for name in names if name not in self._files]
        self.manager = TaskManager(include_defaults=bool(own or found.outside))
        for name in (*own, *found.outside):
            if name not in self.manager.task_index:
                raise _unknown(name, found.outside.get(name))
        for file in (*found.files.values(), *self._files.values()):
            self.manager.task_index[file.name] = self._entry(file)
        for tag, tasks in found.tagged.items():
            self.manager.task_index[tag] = Entry(tag, Kind.TAG, None, tags=set(tasks))

    def load(self, name: str) -> Any:
        """lm-eval's tasks and groups for a given name or file."""
        file = self._files.get(name)
        try:
            return self.manager.load([name if file is None else file.name])
        except KeyError as error:
            if file is not None and (said := _meant(error.args[0], file.body)):
                raise TaskError(f"{file.path}: {said}") from None
            raise

    def is_local(self, name: str) -> bool:
        """Whether a given task file reads files of this machine."""
        file = self._files.get(name)
        named = None if file is None else file.body.get("dataset_path")
        return file is not None and (
            named in FORMATS or data_folder(named, search_folders(file, "dataset_path")) is not None
        )

    def data(self, name: str) -> tuple[Path, ...]:
        """The local files of a given task file, for messages."""
        file = self._files.get(name)
        return () if file is None else files_of(file)

    def _entry(self, file: TaskFile) -> Entry:
        kind = Kind.GROUP if file.is_group else Kind.TASK
        if "class" in file.body:
            kind = Kind.PY_TASK
        return Entry(file.name, kind, None, cfg=self._body(file), tags=set(file.tags))

    def _body(self, file: TaskFile) -> dict[str, Any]:
        body = {**file.body, **_with_data(file.body, file, "dataset_kwargs")}
        if file.is_group:
            body["task"] = [_member(one, file) for one in body.get("task") or ()]
            body.pop("tag", None)
        resolved: dict[str, Any] = self._code.resolved(body)
        return resolved


def _member(member: Any, file: TaskFile) -> Any:
    if not isinstance(member, Mapping):
        return member
    if "task" in member and isinstance(member.get("task"), list):
        return {**member, "task": [_member(one, file) for one in member["task"]]}
    if "group" in member and isinstance(member.get("task"), str):
        return {**member, "task": [member["task"]]}
    return {**member, **_with_data(member, file, "task")}


def _with_data(body: Mapping[str, Any], file: TaskFile, key: str) -> dict[str, Any]:
    """The keys that name a task's data, as lm-eval finds it from any folder."""
    changed: dict[str, Any] = {}
    folders = search_folders(file, key)
    local = data_folder(body.get("dataset_path"), search_folders(file, _key(file, "dataset_path")))
    named = body.get("dataset_path")
    if local is None and isinstance(named, str) and named.startswith((".", "/", "~")):
        raise TaskError(f"{file.path}: its dataset_path {named} is no folder")
    if local is not None:
        _check_readable(local, file)
        changed["dataset_path"] = str(local)
    kwargs = dict(body.get("dataset_kwargs") or {})
    inside = data_folder(kwargs.get("data_dir"), relative_to(local, folders))
    if inside is not None:
        kwargs["data_dir"] = str(inside)
    elif kwargs.get("data_dir") and (body.get("dataset_path") in FORMATS or local):
        raise TaskError(f"{file.path}: its data_dir {kwargs['data_dir']} does not exist")
    patterns = data_patterns(body, relative_to(inside, relative_to(local, folders)))
    if patterns:
        files = {split: _existing(names, file) for split, names in patterns.items()}
        kwargs["data_files"] = files[""] if set(files) == {""} else files
    return {**changed, "dataset_kwargs": kwargs} if kwargs else changed


def _key(file: TaskFile, key: str) -> str:
    return key if key in file.folders else "task"


def _existing(patterns: Sequence[str], file: TaskFile) -> list[str]:
    """The files of these patterns, each escaped so that its own name is no pattern."""
    names: list[str] = []
    for pattern in patterns:
        if is_remote(pattern):
            names.append(pattern)
            continue
        paths = matching(pattern)
        if not paths:
            raise TaskError(f"{file.path}: its data file {pattern} does not exist")
        for path in paths:
            if not path.stat().st_size:
                raise TaskError(f"{file.path}: its data file {path} is empty")
        names += [glob.escape(str(path)) for path in paths]
    return names


def _check_readable(folder: Path, file: TaskFile) -> None:
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise TaskError(
            f"{file.path}: its data {folder} was written by save_to_disk, which lm-eval does not "
            "read: write it with to_parquet or to_json instead"
        )


def _meant(missing: Any, body: Mapping[str, Any]) -> str:
    """What lm-eval's bare KeyError is about: a split, or a metric; empty if neither."""
    splits = [key for key, value in body.items() if key.endswith("_split") and value == missing]
    if splits:
        return f"its data has no split '{missing}', which {splits[0]} names"
    known = AGGREGATION_REGISTRY.keys() | METRIC_REGISTRY.keys()
    metrics = [one.get("metric") for one in body.get("metric_list") or ()]
    unknown = [one for one in metrics if isinstance(one, str) and one not in known]
    if missing is None and unknown:
        return f"lm-eval knows no metric '{unknown[0]}'{nearest_hint(unknown[0], known, 0.6)}"
    return ""


def _unknown(name: str, group: Path | None) -> TaskError:
    if group is not None:
        return TaskError(
            f"the group {group} names '{name}', which no task file beside it and no task of "
            "lm-eval is called"
        )
    return TaskError(
        f"lm-eval knows no task '{name}': see `lm_eval ls tasks`, or give the path of a "
        "task's YAML file"
    )
