"""The runner of coverage-guided fuzzing, without atheris where there is none."""

import subprocess
import sys
from importlib.util import find_spec

from tuner.folders import SOURCE


def test_without_atheris_it_says_what_to_install():
    command = [sys.executable, "scripts/fuzz.py", "size", "--seconds", "1"]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=120)
    if find_spec("atheris") is None:
        assert "pip install atheris, or run `make fuzz` without it" in done.stderr
        assert done.returncode == 1
    else:
        assert done.returncode == 0, done.stderr
