"""Memory is learned: what was seen corrects the equation, and a run over the budget is not lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.memory.plan import resolve
from engine.memory.records import record_bytes
from tests.engine.memory.test_plan import make_facts
from tests.fakes.study import BUDGET_BYTES
from tests.tuner.conftest import Tune
from tuner.search.space import SearchSpace
from tuner.study.memory import LEAST_BYTES, MARGIN_BYTES, MemoryBook, SeenMemory

FACTS = make_facts()
TOKENS = 64
BUDGET = 400_000_000
AUTO = EngineConfig().overlay({"budget.vram_bytes": BUDGET, "precision.bits": 16})
STUDY = ("--definition", "study.yaml", "--objectives", "output_tps,tpot_ms", "--json")


def book(path: Path) -> MemoryBook:
    return MemoryBook(SearchSpace((), AUTO, FACTS), TOKENS, path / "seen.json")


def used_bytes(config: EngineConfig) -> int:
    """What the equation says of a run of TOKENS tokens."""
    freed = {"kv.max_tokens": TOKENS, "budget.vram_bytes": 0, "device.correction_bytes": 0}
    return resolve(config.overlay(freed), FACTS).memory.total_bytes


@pytest.mark.parametrize("error", [-30_000_000, -9_000_000, 0, 7_000_000])
def test_the_first_run_corrects_the_space_once(tmp_path: Path, error: int) -> None:
    learned = book(tmp_path)
    config = resolve(AUTO, FACTS).config
    learned.learn(config, used_bytes(config) + error)
    correction = learned.space.correction_bytes
    assert correction is not None
    assert correction == max(LEAST_BYTES, error + MARGIN_BYTES)
    learned.learn(config, used_bytes(config) + 50_000_000)
    assert learned.space.correction_bytes == correction, "a point would have two configs"


def test_what_is_kept_is_the_worst_of_all_runs(tmp_path: Path) -> None:
    config = resolve(AUTO, FACTS).config
    for error in (-8_000_000, 3_000_000, -2_000_000):
        book(tmp_path).learn(config, used_bytes(config) + error)
    text = (tmp_path / "seen.json").read_text()
    seen = SeenMemory(3, -8_000_000, 3_000_000)
    assert all(f'"{k}": {v}' in text for k, v in vars(seen).items())
    assert seen.correction_bytes(BUDGET) == 3_000_000 + MARGIN_BYTES
    assert seen.correction_bytes(10**10) == 3_000_000 + 50_000_000


@pytest.mark.parametrize("over", [1, 1_000_000, 60_000_000])
def test_a_smaller_cache_fits_by_the_corrected_equation(tmp_path: Path, over: int) -> None:
    learned, config = book(tmp_path), resolve(AUTO, FACTS).config
    smaller = learned.shrunk(config, BUDGET + over)
    assert smaller is not None
    memory = resolve(smaller, FACTS).memory
    gone = int(config.cache.expert_bytes) - int(smaller.cache.expert_bytes)
    assert gone > 0
    assert gone % record_bytes(config, FACTS) == 0
    error = BUDGET + over - used_bytes(config)
    assert used_bytes(smaller) + error <= BUDGET, "the same run again keeps the budget"
    assert memory.total_bytes <= BUDGET, "and so does one with full keys and values"
    assert memory.total_bytes + record_bytes(config, FACTS) > BUDGET, "no more is given up"


def test_where_no_smaller_cache_runs_there_is_none(tmp_path: Path) -> None:
    config = resolve(AUTO, FACTS).config
    assert book(tmp_path).shrunk(config, 3 * BUDGET) is None


def test_a_run_over_the_budget_is_measured_again_with_a_smaller_cache(
    tune: Tune, misbehave: Any
) -> None:
    """The default config fills the budget; the machine takes 5 MB more than the equation."""
    misbehave(beyond_bytes=9_000_000)
    done = tune(*STUDY, "--trials", "4")
    trials = done.document["trials"]
    assert {t["failure"] for t in trials} == {None}, [t["reason"] for t in trials]
    assert all(t["memory"]["external_peak_bytes"] <= BUDGET_BYTES for t in trials)
    assert trials[0]["memory"]["correction_bytes"] == 9_000_000
    later = {t["memory"]["correction_bytes"] for t in trials[1:]}
    assert later == {trials[0]["memory"]["correction_bytes"]}


def test_a_card_that_refuses_what_passes_the_budget_gets_a_smaller_cache_too(
    tune: Tune, misbehave: Any
) -> None:
    misbehave(beyond_bytes=9_000_000, limited=True)
    trials = tune(*STUDY, "--trials", "3").document["trials"]
    assert {t["failure"] for t in trials} == {None}, [t["reason"] for t in trials]
    assert {t["memory"]["correction_bytes"] for t in trials} == {9_000_000}


def test_the_next_study_of_the_model_begins_with_what_was_learned(
    tune: Tune, misbehave: Any
) -> None:
    misbehave(beyond_bytes=9_000_000)
    first = tune(*STUDY, "--trials", "2", "--study", "first").document["trials"]
    again = tune(*STUDY, "--trials", "1", "--study", "second")
    assert "measured again" not in again.err
    (trial,) = again.document["trials"]
    assert trial["memory"]["correction_bytes"] == first[0]["memory"]["correction_bytes"]


def test_a_study_goes_on_with_its_own_correction(tune: Tune, misbehave: Any) -> None:
    misbehave(beyond_bytes=-4_000_000)
    before = tune(*STUDY, "--trials", "3").document["trials"]
    misbehave(beyond_bytes=-9_000_000)
    done = tune(*STUDY, "--trials", "6")
    assert done.code == 0, done.err
    after = done.document["trials"]
    known = {t["memory"]["correction_bytes"] for t in before[1:]}
    assert len(known) == 1
    assert {t["memory"]["correction_bytes"] for t in after[3:]} == known


def test_where_nothing_fits_any_more_the_study_ends_and_says_why(
    tune: Tune, misbehave: Any
) -> None:
    misbehave(beyond_bytes=60_000_000)
    done = tune(*STUDY, "--trials", "3")
    assert done.code in (0, 3), done.err
    assert "unexpected" not in done.err
    assert "measured from outside" in done.err
