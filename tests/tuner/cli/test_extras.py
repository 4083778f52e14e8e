"""Without the packages of extras: commands that need none run, the others say what to install."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.study import BUDGET_BYTES
from tuner.folders import SOURCE

PROGRAM = """
import contextlib, io, json, sys

class Without:
    # The usual finder, on a machine where these packages are not installed.
    def __init__(self, finder, names):
        self.finder, self.names = finder, names

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):  # what importlib.metadata asks finders for
        return getattr(self.finder, name)

names, commands = json.loads(sys.argv[1])
sys.meta_path[:] = [Without(finder, names) for finder in sys.meta_path]
from tuner.__main__ import run

found = []
for words in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([found, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
OPTIONAL = (
    "fastapi", "starlette", "uvicorn", "prometheus_client", "streamlit", "plotly", "pandas", "ray",
    "psycopg", "triton", "xllamacpp", "matplotlib",
)  # fmt: skip
BUDGET = str(BUDGET_BYTES)
PLAIN = (
    ("--help",),
    ("--version",),
    ("plan", "--model", "m", "--vram", BUDGET),
    ("studies",),
    ("show", "small"),
    ("export", "small"),
    ("bench", "--model", "m", "--vram", BUDGET, "--workload", "workload.yaml", "--repeats", "2",
     "--report", "r.md"),
)  # fmt: skip
REFUSED = {
    ("dashboard",): "`tune dashboard` needs streamlit, plotly, pandas, which this installation "
    "lacks: pip install 'expertune[dashboard]'",
    ("bench", "--model", "m", "--vram", BUDGET, "--report", "r.html"): "--report r.html needs "
    "streamlit, plotly, pandas, which this installation lacks: pip install 'expertune[dashboard]'",
    ("service",): "`tune service` needs fastapi, uvicorn, prometheus_client, which this "
    "installation lacks: pip install 'expertune[serve]'",
    ("deploy", "expertune-small.yaml"): "`tune deploy` needs fastapi, uvicorn, prometheus_client, "
    "which this installation lacks: pip install 'expertune[serve]'",
    ("studies", "--storage", "postgresql://nobody@127.0.0.1/none"): "PostgreSQL needs the module "
    "psycopg: pip install 'expertune[postgres]'",
}


def run_without(names: tuple[str, ...], *commands: tuple[str, ...]) -> Any:
    """([code, stdout, stderr] of each command, modules that were imported)."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([names, commands])],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    return json.loads(done.stdout)


def test_commands_that_need_no_extra_run_without_any(study: Path):
    told, modules = run_without(OPTIONAL, *PLAIN)
    for words, (code, out, err) in zip(PLAIN, told, strict=True):
        assert code == 0, (words, err)
        assert out
    assert set(OPTIONAL) & set(modules) == set()


def test_commands_that_need_none_import_none(study: Path):
    # `show` weighs settings with optuna's importances, which look for what they could draw with
    words = [words for words in PLAIN if words[0] != "show"]
    told, modules = run_without((), *words)
    assert [code for code, _, _ in told] == [0] * len(words)
    assert set(OPTIONAL) & set(modules) == set()


def test_a_command_without_its_extra_says_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("EXPERTUNE_ENGINE")  # `tune deploy` asks only for what our own server needs
    told, _ = run_without(OPTIONAL, *REFUSED)
    for says, (code, out, err) in zip(REFUSED.values(), told, strict=True):
        assert code in (1, 2)
        assert (out, err) == ("", f"tune: {says}\n")
