"""A budget curve: one study answers several device budgets."""

import json
from pathlib import Path

import pytest

from tests.fakes.study import BUDGET_BYTES, budget_of, smallest_budget, tune_in, write_definition
from tests.tuner.conftest import Tune
from tuner.deployment.document import load_deployment

SMALL = budget_of(4, "50%")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of two budgets."""
    folder = tmp_path_factory.mktemp("curve")
    path = write_definition(folder)
    budget = f"budget: {{vram_bytes: {BUDGET_BYTES}, curve: [{SMALL}]}}"
    lines = [budget if line.startswith("budget") else line for line in path.read_text().split("\n")]
    path.write_text("\n".join(lines))
    printed = tune_in(folder, "--definition", "study.yaml", "--trials", "14", "--json")
    (folder / "curve.json").write_text(printed)
    return folder


@pytest.fixture
def curve(made: Path) -> dict:
    """The document that it ended with."""
    return json.loads((made / "curve.json").read_text())


def test_each_budget_has_its_own_recommendation_and_file(curve: dict, made: Path):
    small, large = curve["curve"]
    assert (small["budget_bytes"], large["budget_bytes"]) == (SMALL, BUDGET_BYTES)
    trials = {trial["number"]: trial for trial in curve["trials"]}
    under = trials[small["recommended"]]["config"]["budget"]["vram_bytes"]
    assert under == SMALL
    assert large["fastest_tps"] >= small["fastest_tps"]
    assert small["gained_tps_per_gb"] is None
    step = (large["fastest_tps"] - small["fastest_tps"]) / (BUDGET_BYTES - SMALL) * 1e9
    assert large["gained_tps_per_gb"] == pytest.approx(step)
    files = sorted(made.glob("expertune-small*.yaml"))
    assert len(files) == 2
    assert {load_deployment(file).config().budget.vram_bytes for file in files} <= {
        SMALL,
        BUDGET_BYTES,
    }


def test_what_fits_the_small_budget_is_measured_once_for_both(curve: dict):
    measured = [trial for trial in curve["trials"] if trial["state"] in ("COMPLETE", "PRUNED")]
    for trial in measured:
        needed = trial["memory"]["total_bytes"]
        assert trial["config"]["budget"]["vram_bytes"] == (
            SMALL if needed <= SMALL else BUDGET_BYTES
        )
    configs = [str(trial["config"]) for trial in measured]
    assert len(set(configs)) == len(configs)


def test_budgets_on_the_command_line_are_sorted_into_a_curve(tune: Tune):
    text = f"{BUDGET_BYTES},{smallest_budget(8)}"
    done = tune("--definition", "study.yaml", "--vram", text, "--dry-run", "--json")
    assert done.code == 0, done.err
    choices = done.document["plan"]["space"]["budget.vram_bytes"]
    assert choices == [BUDGET_BYTES, smallest_budget(8)]


def test_another_command_takes_one_budget(tune: Tune):
    done = tune("plan", "--model", "some-moe", "--vram", "1GB,2GB")
    assert done.code == 2
    assert "takes one budget" in done.err
