"""The room that a study's tasks get, and what is refused before the first trial."""

from pathlib import Path

import pytest

from engine.contract.requests import TaskNeed
from tests.fakes.fake_engine import facts_of
from tuner.definition.study import StudyDefinition
from tuner.errors import UsageError
from tuner.search.space import study_base
from tuner.study.tasks import CAPACITY, with_capacity

POSITIONS = 2048  # of the fake model


def study(**fields: object) -> StudyDefinition:
    workload = Path(__file__).parents[3] / "studies" / "workloads" / "demo.yaml"
    known = {"model": "m", "workload": str(workload), "budget": {"vram_bytes": 60_000_000}}
    return StudyDefinition.model_validate({**known, **fields})


def room(needs: list[TaskNeed], **fields: object) -> object:
    return with_capacity(study(**fields), facts_of("m"), needs).definition.task_tokens


def test_tasks_that_fit_change_nothing() -> None:
    found = with_capacity(study(), facts_of("m"), [TaskNeed("t", 700, 324, 1025, 9)])
    assert found.definition == study()
    assert found.notes == ()


def test_the_task_that_needs_most_sets_the_room() -> None:
    assert room([TaskNeed("a", 900, 300), TaskNeed("b", 100, 1300)]) == 1400
    assert room([TaskNeed("a", 0, 0, 1501, 4)]) == 1500  # the last token is not read


@pytest.mark.parametrize("how", [{"engine": {CAPACITY: 256}}, {"space": {CAPACITY: [1024, 256]}}])
def test_a_fixed_room_that_is_too_small_is_refused_with_both_numbers(
    how: dict[str, object],
) -> None:
    with pytest.raises(UsageError, match=r"task t needs 280 tokens, a prompt of 30 and 250 .* 256"):
        room([TaskNeed("t", 30, 250)], **how)
    with pytest.raises(UsageError, match=r"task t scores a continuation of 300 tokens, .* is 256"):
        room([TaskNeed("t", 0, 0, 310, 300)], **how)
    room([TaskNeed("t", 30, 226)], **how)


def test_what_exceeds_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs 2100 tokens, .*and m has 2048 positions"):
        room([TaskNeed("t", 100, 2000)])
    with pytest.raises(UsageError, match="2048"):
        room([TaskNeed("t", 100, 2000)], engine={CAPACITY: 4096})


def test_a_context_that_is_cut_is_said() -> None:
    long = TaskNeed("t", 0, 0, POSITIONS + 100, 5)
    found = with_capacity(study(), facts_of("m"), [long])
    assert found.definition.task_tokens == POSITIONS
    assert "its longest text has 2148 tokens, of which the last 2049 count" in found.notes[1]
    fixed = with_capacity(
        study(engine={CAPACITY: 256}), facts_of("m"), [TaskNeed("t", 0, 0, 300, 5)]
    )
    assert "has 300 tokens, of which the last 257 count" in fixed.notes[0]
    assert fixed.definition.task_tokens == 0


def test_the_room_of_a_study_is_that_of_its_tasks_and_not_what_tells_it_apart() -> None:
    plain = study()
    found = with_capacity(plain, facts_of("m"), [TaskNeed("t", 100, 1300)]).definition
    base = study_base(found, facts_of("m"), found.load_workload(), "cpu")
    assert base.kv.max_tokens == 1400
    assert found.search_digest() == plain.search_digest()
