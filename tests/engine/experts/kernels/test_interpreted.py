"""The quick tests of grouped launches, in triton's interpreter: it has to be chosen from the start
of a process."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.requirements import require_extra

FILE = "tests/engine/experts/kernels/test_grouped.py"


def test_grouped_launches_agree_with_plain_torch_in_the_interpreter() -> None:
    require_extra("gpu")
    command = [sys.executable, "-m", "pytest", "-m", "triton and not slow", FILE]
    child = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout[-4000:]
    assert "skipped" not in child.stdout.splitlines()[-1]
