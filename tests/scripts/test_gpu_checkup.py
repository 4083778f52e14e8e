"""scripts/gpu_checkup.sh on the processor: every step that needs no accelerator runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuner.folders import SOURCE

SCRIPT = SOURCE / "scripts" / "gpu_checkup.sh"


def checkup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"DEVICE": "cpu", "STUDY_TIME": "20s", "FOLDER": str(folder), **environment}
    return subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, "PYTHON": sys.executable, **settings},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_steps_run_and_the_report_names_them(tmp_path: Path):
    done = checkup(tmp_path)
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert done.returncode == 0, report
    for step in (
        "machine and parity",
        "budgets",
        "profile",
        "bench",
        "captured decoding",
        "demo study",
        "twin result",
    ):
        assert f"## {step}: passed" in report
    assert "## tests: left out" in report


def test_a_step_that_fails_is_counted_and_the_others_go_on(tmp_path: Path):
    done = checkup(tmp_path, PYTHON="/bin/false")
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert done.returncode == report.count("FAILED with 1") > 5
