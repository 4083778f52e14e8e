"""Runs one experiment: `python -m experiments.run NAME [ARGUMENTS ...]`; lists them without NAME.

In: the name of a module in this folder and its own arguments (`NAME --help`). Native libraries get
the settings of an engine process before anything loads torch, so that times compare with a run's.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path

import typer

from engine.worker.process import set_native_settings

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Lists every experiment: a module with a `main`."""
    files = (
        path for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")
    )
    return sorted(path.stem for path in files if path.stem != "run")


def main() -> int:
    """Entry point."""
    chosen = sys.argv[1:2]
    if not chosen or chosen[0] not in names():
        sys.stderr.write(f"usage: python -m experiments.run NAME; there are {', '.join(names())}\n")
        return 2
    set_native_settings()
    run = import_module(f"experiments.{chosen[0]}").main
    sys.argv = sys.argv[1:]
    if inspect.signature(run).parameters:
        typer.run(run)
        return 0
    return run() or 0


if __name__ == "__main__":
    sys.exit(main())
