"""Starts child processes that die with this one, and ends them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.processes.secrets import KEY_VARIABLE

ENDING_S = 30.0


def start_child(
    command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Starts a program that the kernel kills when this process dies.

    command: program and arguments; environment: added to this process's own without the API key,
    in which the child finds the same packages; options: of subprocess.Popen, stdin is /dev/null
    unless given.
    """
    wrapper = [sys.executable, "-m", "tuner.processes.pdeathsig", str(os.getpid())]
    variables = {**os.environ, "PYTHONPATH": python_path(), **(environment or {})}
    variables.pop(KEY_VARIABLE, None)
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen([*wrapper, *command], env=variables, **options)


def start_module(module: str, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
    """start_child for `python -m module`."""
    return start_child([sys.executable, "-m", module, *arguments], **options)


def end_process(process: subprocess.Popen[Any], within_s: float = ENDING_S) -> None:
    """Terminates a process as Ctrl-C would; kills it if it does not end in time."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def python_path() -> str:
    """The PYTHONPATH of a child: the source tree first, where this program runs from one.

    What is installed is found anyway; its folder in front would hide the standard library.
    """
    source = Path(__file__).resolve().parents[2]
    own = [str(source)] if (source / "pyproject.toml").is_file() else []
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])
