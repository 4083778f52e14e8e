"""A grid measured point by point with the fake engine, and samplers compared on it."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fakes.study import ENGINE, write_definition

ROOT = Path(__file__).resolve().parents[2]
SPACE = """\
engine: {precision.activation_bits: 16}
space:
  cache.expert_bytes: ["25%", "50%", "75%"]
  prefetch.depth: [0, 1]
  precision.bits: [8, 4]
  batch.count: [1]
"""
CONFIGS = 12


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = write_definition(tmp_path)
    path.write_text(path.read_text() + SPACE)
    return path


def experiment(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", name, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPERTUNE_ENGINE", ENGINE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert "EXPERTUNE_FAKE" not in os.environ


def lines(definition: Path) -> list[dict]:
    return [json.loads(line) for line in definition.with_suffix(".jsonl").read_text().splitlines()]


def test_a_grid_resumes_where_it_stopped_and_samplers_are_compared_on_it(definition: Path):
    experiment("measure_grid", str(definition), "--most", "5")
    first = lines(definition)
    assert len(first) == 5
    assert not definition.with_suffix(".json").exists()
    experiment("measure_grid", str(definition), "--rounds", "2")
    rows = lines(definition)
    assert rows[:5] == first
    runs = Counter(json.dumps(row["point"], sort_keys=True) for row in rows)
    assert sorted(runs.values()) == [2] * CONFIGS
    for row in rows:
        assert len(row["seconds"]) == 1 + len(row["samples"]) == 1 + len(row["sentinel"])

    samplers = ("--seeds", "2", "--samplers", "ours,random")
    table = experiment("compare_samplers", str(definition), *samplers)
    assert f"small: {CONFIGS} configurations" in table
    cells = {line.split("|")[1].strip(): line for line in table.splitlines() if line.count("|") > 3}
    assert {"ours", "random"} <= set(cells)
    assert definition.with_suffix(".svg").read_text().startswith("<?xml")
    with definition.with_suffix(".csv").open() as file:
        assert {row["sampler"] for row in csv.DictReader(file)} == {"ours", "random"}


def test_a_grid_that_is_not_complete_is_not_compared(definition: Path):
    experiment("measure_grid", str(definition))
    kept = definition.with_suffix(".jsonl").read_text().splitlines()
    definition.with_suffix(".jsonl").write_text("\n".join(kept[:-1]) + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", "compare_samplers", str(definition)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert f"1 of {CONFIGS} configurations were not measured" in done.stderr
    assert "Traceback" not in done.stderr
