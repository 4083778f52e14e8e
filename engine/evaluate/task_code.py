"""Runs the code that a task file names with `!function`, and says where it failed.

As lm-eval does: a module beside the task file is loaded from its file under its full path, so that
the `utils` of two tasks never meet; any other module is imported. A module is loaded anew each time
its tasks are, from source: two evaluations share no state, and an edit always counts.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import httpx2
from datasets.exceptions import DatasetGenerationError

from engine.contract.task_file import FunctionName
from engine.errors import EngineError, TaskError, UnreachableTaskError

_OUTSIDE = (OSError, httpx2.HTTPError)


class TaskCode:
    """The functions of the tasks that are loaded together; each module runs once."""

    def __init__(self) -> None:
        self._modules: dict[Path, ModuleType] = {}

    def resolved(self, value: Any) -> Any:
        """A task's keys with functions in place of their names. Raises TaskError for a module that
        cannot be imported and for a function that it does not have."""
        if isinstance(value, FunctionName):
            return self._function(value)
        if isinstance(value, Mapping):
            return {key: self.resolved(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.resolved(one) for one in value]
        return value

    def _function(self, wanted: FunctionName) -> Any:
        module_name, _, name = wanted.name.rpartition(".")
        if not module_name:
            raise TaskError(
                f"!function {wanted.name} in {wanted.folder} names no module: write module.function"
            )
        path = wanted.module
        with explained(
            f"!function {wanted.name} of a task file in {wanted.folder} cannot be imported",
            "mend its !function",
            local=True,
        ):
            module = importlib.import_module(module_name) if path is None else self._loaded(path)
        if not hasattr(module, name):
            raise TaskError(
                f"{path or module_name} has no function '{name}', which a task file in "
                f"{wanted.folder} names: mend its !function"
            )
        return getattr(module, name)

    def _loaded(self, path: Path) -> ModuleType:
        if path not in self._modules:
            name = str(path.with_suffix(""))
            loader = _FromSource(name, str(path))
            spec = importlib.util.spec_from_file_location(name, path, loader=loader)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            loader.exec_module(module)
            self._modules[path] = module
        return self._modules[path]


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles the file as it is now: bytecode of an edit in the same second would be older."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


@contextmanager
def explained(
    failed: str, advice: str, *, local: bool = False, only_theirs: bool = False
) -> Iterator[None]:
    """Raises whatever a task's code, data or YAML causes as a TaskError of one sentence.

    failed: what could not be done; advice: what to try if no code of the user's was involved, whose
    file and function are named otherwise; local: a missing file is not at a hub; only_theirs:
    errors that passed through no code of the user's stay as they are. The broad `except` is the
    boundary of code that is not ours.
    """
    try:
        yield
    except (EngineError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, DatasetGenerationError):  # its cause says more
            error = error.__cause__ or error
        said = f"{type(error).__name__}: {first_line(error)}"
        if (place := user_frame(error)) is not None:
            raise TaskError(f"{failed}: {place} raised {said}") from None
        if only_theirs:
            raise
        if isinstance(error, ImportError):
            raise TaskError(f"{failed}: it needs a package: {first_line(error)}") from None
        if isinstance(error, _OUTSIDE) and not (local and isinstance(error, FileNotFoundError)):
            raise UnreachableTaskError(
                f"{failed}: its data cannot be reached ({first_line(error)}): go online or "
                "download the data set first, or use local tasks"
            ) from None
        raise TaskError(f"{failed} ({said}): {advice}") from None


def user_frame(error: BaseException) -> str | None:
    """The last place in a task's own code that an error passed through: file, function and line;
    None if it passed through none."""
    if isinstance(error, SyntaxError) and (error.filename or "").endswith(".py"):
        return f"{error.filename}, line {error.lineno},"
    frames = traceback.walk_tb(error.__traceback__)
    own = [(one, line) for one, line in frames if _is_users(one)]
    if not own:
        return None
    frame, line = own[-1]
    code = frame.f_code
    inside = "" if code.co_name == "<module>" else f", function {code.co_name}"
    return f"{code.co_filename}{inside}, line {line},"


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_users(frame: FrameType) -> bool:
    return isinstance(frame.f_globals.get("__loader__"), _FromSource)
