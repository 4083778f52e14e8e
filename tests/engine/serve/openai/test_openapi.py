"""The OpenAPI document tells the truth: schemathesis, with all of its checks, finds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.run.engine import Engine
from tests.engine.serve.made import configure, serving
from tuner.folders import SOURCE

ALL = ("--max-examples", "200")
FEW = ("--phases", "fuzzing", "--max-examples", "10")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("effort", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing(
    engine: Engine,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    effort: tuple[str, ...],
) -> None:
    configure(engine, **{"kv.max_tokens": 4096})  # room for whatever is made up
    every_second = list(range(0, 300, 2))  # texts end soon, which saves most of the time
    monkeypatch.setattr(engine.model.model.generation_config, "eos_token_id", every_second)
    with serving(engine, tokenizer) as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
            *effort, "--seed", "1", "--no-color", "--generation-database", "none",
        ]  # fmt: skip
        hooks = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.engine.serve.openai.relations"}
        hooks["PYTHONPATH"] = str(SOURCE)
        done = subprocess.run(
            command, cwd=tmp_path, env=hooks, capture_output=True, text=True, timeout=900
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 selected / 8 total" in done.stdout
