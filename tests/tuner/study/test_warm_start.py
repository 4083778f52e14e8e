"""What earlier studies propose to a new one."""

from pathlib import Path

from tests.fakes.study import budget_of
from tests.tuner.conftest import Tune


def test_another_budget_starts_with_what_the_first_one_recommends(tune: Tune, study: Path):
    before = tune("show", "small", "--json").document
    knee = next(t for t in before["trials"] if t["number"] == before["recommended"])
    budget = str(budget_of(8, "70%", 2))
    done = tune("--definition", "study.yaml", "--vram", budget, "--study", "tight",
                "--trials", "8", "--json")  # fmt: skip
    assert done.code == 0, done.err
    trials = done.document["trials"]
    assert trials[0]["origin"] == "default"
    (moved,) = [trial for trial in trials if trial["origin"] == "transfer: small"]
    for name, value in moved["params"].items():
        if name != "cache.expert_bytes":
            assert value == knee["params"][name]
    assert moved["metrics"]["output_tps"]["n"] >= 1  # measured here, not taken over
    assert f"trial {moved['number']}, proposed by study small," in tune("show", "tight").out


def test_a_study_of_another_family_proposes_nothing(tune: Tune, folder: Path):
    done = tune("--definition", "study.yaml", "--json")
    assert not [t for t in done.document["trials"] if t["origin"].startswith("transfer")]
