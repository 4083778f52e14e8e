"""Answers that are known are given without the engine; what is not deterministic is never known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StorageError
from engine.run.engine import Engine
from engine.run.penalties import PenaltyOptions
from engine.run.sampling import SamplingOptions
from engine.serve.batching.response_cache import ResponseCache, key_of, response_cache_path
from engine.serve.batching.sequence import SequenceRequest, StepOutput
from tests.engine.conftest import TEXT
from tests.engine.serve.batching.test_scheduler import ask
from tests.engine.serve.made import configure, eventually, looping, want

GREEDY = want([1, 2, 3])
SAMPLED = want([1, 2, 3], sampling=SamplingOptions(temperature=0.8, seed=4))


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[ResponseCache]:
    ticks = count()
    with contextlib.closing(ResponseCache(tmp_path / "a" / "b.db", 3, lambda: next(ticks))) as made:
        yield made


def test_only_what_is_deterministic_has_a_key() -> None:
    assert key_of(GREEDY) is not None
    assert key_of(SAMPLED) is None
    assert key_of(replace(SAMPLED, seeded=True)) is not None
    assert key_of(replace(GREEDY, logprobs=2)) is None


@pytest.mark.parametrize(
    "other",
    [
        replace(GREEDY, prompt=(1, 2)),
        replace(GREEDY, max_tokens=9),
        replace(GREEDY, stop=("x",)),
        replace(GREEDY, min_tokens=2),
        replace(GREEDY, ignore_eos=True),
        replace(GREEDY, sampling=SamplingOptions(penalties=PenaltyOptions(presence=1.0))),
        replace(GREEDY, sampling=SamplingOptions(penalties=PenaltyOptions(bias=((1, 1.0),)))),
        replace(SAMPLED, seeded=True),
    ],
)
def test_whatever_decides_the_answer_is_in_the_key(other: SequenceRequest) -> None:
    assert key_of(other) != key_of(GREEDY)


@pytest.mark.parametrize("fields", [{"top_k": 3}, {"min_p": 0.1}, {"top_p": 0.5}, {"seed": 5}])
def test_whatever_decides_a_sampled_answer_is_in_its_key(fields: dict[str, Any]) -> None:
    seeded = replace(SAMPLED, seeded=True)
    other = replace(seeded, sampling=replace(seeded.sampling, **fields))
    assert key_of(other) not in (None, key_of(seeded))


def test_a_seed_means_nothing_to_a_greedy_answer() -> None:
    seeded = replace(GREEDY, sampling=SamplingOptions(seed=7), seeded=True)
    assert key_of(seeded) == key_of(GREEDY)


def test_the_least_lately_used_answer_goes_first(answers: ResponseCache) -> None:
    asked = [want([number]) for number in range(4)]
    for one in asked[:3]:
        answers.keep(one, "text", StepOutput(tokens=2, finish="stop"))
    assert answers.find(asked[0]) is not None  # used again
    answers.keep(asked[3], "text", StepOutput(tokens=2, finish="stop"))
    assert [answers.find(one) is not None for one in asked] == [True, False, True, True]
    assert len(answers) == 3


def test_an_answer_is_kept_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    with contextlib.closing(ResponseCache(path, 9)) as first:
        first.keep(GREEDY, "so it is", StepOutput(tokens=3, finish="length"))
    with contextlib.closing(ResponseCache(path, 9)) as again:
        assert again.find(GREEDY) == StepOutput("so it is", (), 3, 3, "length")


def test_what_did_not_end_is_not_kept(answers: ResponseCache) -> None:
    received: list[StepOutput] = []
    deliver = answers.recording(GREEDY, received.append)
    deliver(StepOutput("so ", tokens=1))
    deliver(StepOutput(error="the engine failed"))
    assert len(received) == 2
    assert len(answers) == 0


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"serve\.response_cache_entries cannot be kept"):
        ResponseCache(tmp_path / "file" / "answers.db", 3)


def test_other_settings_have_other_answers(engine: Engine) -> None:
    paths = set()
    for bits in (16, 8):
        configure(engine, **{"precision.bits": bits})
        assert engine.config is not None
        paths.add(response_cache_path(engine.config, engine.facts, Path("cache")))
        deeper = engine.config.overlay({"prefetch.depth": 1, "prefetch.predictor": "next_gate"})
        paths.add(response_cache_path(deeper, engine.facts, Path("cache")))
    configure(engine)
    assert len(paths) == 2


def test_the_second_of_equal_requests_does_not_reach_the_engine(
    engine: Engine, tokenizer: Any, answers: ResponseCache
) -> None:
    configure(engine)
    prompt = tokenizer(TEXT)["input_ids"][:12]
    sampled = want(prompt, 6, sampling=SamplingOptions(temperature=1.0, seed=3))
    with looping(engine, tokenizer, answers=answers) as (loop, meters, _):
        first = [ask(loop, want(prompt, 6))[0].text, ask(loop, sampled)[0].text]
        eventually(lambda: meters.totals.finished == 2)  # counted after the answer has gone out
        before = meters.totals.copy()
        (received,) = ask(loop, want(prompt, 6))
        assert (received.text, received.wait().finish) == (first[0], "length")
        assert received.wait().cached == len(prompt)
        assert meters.totals.since(before).finished == 0  # counts into no speed
        assert meters.totals.since(before).output_tokens == 0
        assert ask(loop, sampled)[0].text == first[1]
    found = meters.totals
    assert (found.answers_known, found.answers_asked) == (1, 3)
    assert (
        'expertune_response_cache_total{model_name="tiny",outcome="hit"} 1.0'
        in meters.exposition().decode()
    )
