"""The files that an lm-eval task file depends on: its data, its functions' modules, what it names.

In: a TaskFile. Out: paths and patterns; nothing is read but folders.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.contract.task_file import TaskFile, functions, listed, members, modules
from engine.errors import TaskError

# Names of `dataset_path` that are formats of files, not data sets.
FORMATS = frozenset({"json", "csv", "parquet", "text", "arrow", "pandas", "xml"})
MOST_FILES = 10_000  # of a task's data


def data_patterns(body: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, list[str]]:
    """The task's data files by split ("" if it names none), as absolute patterns.

    folders: where a relative name is looked for, in order. A URL stays as it is.
    """
    given = (body.get("dataset_kwargs") or {}).get("data_files")
    splits = given if isinstance(given, Mapping) else {"": given}
    return {
        str(split): [_anchored(name, folders) for name in listed(names)]
        for split, names in splits.items()
        if names is not None
    }


def data_folder(name: Any, folders: Sequence[Path]) -> Path | None:
    """A `data_dir` or a `dataset_path` as the folder that it names; None if it names none."""
    if not isinstance(name, str) or "://" in name or name in FORMATS:
        return None
    places = [place for folder in folders if os.path.isdir(place := _joined(folder, name))]
    return places[0].resolve() if places else None


def matching(pattern: str) -> list[Path]:
    """The local files of an absolute pattern; a name that is a file is no pattern."""
    if os.path.isfile(pattern):
        return [Path(pattern)]
    return sorted(_few(glob.iglob(pattern, recursive=True), pattern))


def is_remote(pattern: str) -> bool:
    """Whether data is named by an address rather than as a file."""
    return "://" in pattern


def search_folders(task: TaskFile, key: str) -> tuple[Path, ...]:
    """Where the relative names of a key are looked for: beside the file that wrote it, beside the
    task file, and, as lm-eval does, in the working folder."""
    own = task.folders.get(key, task.folder)
    return tuple(dict.fromkeys((own, task.folder, Path.cwd())))


def relative_to(folder: Path | None, others: Sequence[Path]) -> tuple[Path, ...]:
    """Folders to look in, with one in front if there is one."""
    return (*(() if folder is None else (folder,)), *others)


def files_of(task: TaskFile) -> tuple[Path, ...]:
    """Every file besides its YAML that decides what a task asks and how it is scored: its
    functions' modules, its data, and whatever else it names."""
    found = set(modules(functions(task.body)))
    for body, folders in _bodies(task):
        kwargs = body.get("dataset_kwargs") or {}
        local = data_folder(body.get("dataset_path"), folders)
        inside = data_folder(kwargs.get("data_dir"), relative_to(local, folders))
        patterns = data_patterns(body, relative_to(inside, relative_to(local, folders)))
        for pattern in (one for names in patterns.values() for one in names):
            found.update(() if is_remote(pattern) else matching(pattern))
        if not patterns and (whole := inside or local) is not None:
            found.update(_few(whole.rglob("*"), whole))
        found.update(_named(body, folders[0]))
    return tuple(sorted(found))


def _bodies(task: TaskFile) -> Iterator[tuple[Mapping[str, Any], tuple[Path, ...]]]:
    yield task.body, search_folders(task, "dataset_kwargs")
    if task.is_group:
        for member in members(task.body):
            if isinstance(member, Mapping):
                yield member, search_folders(task, "task")


def _few(paths: Iterable[str | Path], place: str | Path) -> list[Path]:
    """The files among paths. Raises TaskError for more than MOST_FILES, since / is a folder too."""
    files = (Path(path) for path in paths if os.path.isfile(path))
    found = list(itertools.islice(files, MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise TaskError(
            f"{place!s:.200} holds more than {MOST_FILES} files, more than the data of a task: "
            "name a folder or files of its own in dataset_kwargs"
        )
    return found


def _joined(folder: Path, name: str) -> Path:
    return folder / os.path.expanduser(name)


def _anchored(name: str, folders: Sequence[Path]) -> str:
    """The first place where the name is a file or matches some, else the first place."""
    if is_remote(name):
        return name
    for folder in folders:
        if os.path.isfile(_joined(folder, name)):
            return str(_joined(folder, name).resolve())
    patterns = [
        name if Path(name).is_absolute() else f"{glob.escape(str(folder))}/{name}"
        for folder in folders
    ]
    return next((one for one in patterns if matching(one)), str(_joined(folders[0], name)))


def _named(data: Any, folder: Path) -> set[Path]:
    """The files beside the task file whose names stand anywhere in it."""
    if isinstance(data, Mapping):
        return set().union(*(_named(value, folder) for value in data.values()))
    if isinstance(data, list):
        return set().union(*(_named(value, folder) for value in data))
    if isinstance(data, str) and 0 < len(data) < 200 and "\0" not in data:
        path = folder / data
        try:
            return {path.resolve()} if path.is_file() else set()
        except OSError:
            return set()
    return set()
