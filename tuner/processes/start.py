"""Starts and ends child processes that must not outlive this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

ENDING_S = 30.0


def end_process(process: subprocess.Popen[Any], within_s: float = ENDING_S) -> None:
    """As Ctrl-C would, then for sure."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def python_path() -> str:
    """This program's own import path, so that a worker finds the same packages."""
    source = str(Path(__file__).resolve().parents[2])
    rest = os.environ.get("PYTHONPATH", "")
    return f"{source}{os.pathsep}{rest}" if rest else source
