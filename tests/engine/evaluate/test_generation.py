"""What of generation_kwargs is honoured, what asks for nothing, what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import TaskError
from engine.evaluate.generation import GenerationSettings, read_generation
from engine.run.penalties import PenaltyOptions
from engine.run.sampling import SamplingOptions

GREEDY = SamplingOptions()


def read(**given: Any) -> GenerationSettings:
    return read_generation(given, "t")


def test_nothing_asked_is_greedy_with_lm_evals_default_length() -> None:
    assert read() == GenerationSettings((), 256, GREEDY)


@pytest.mark.parametrize(
    ("until", "expected"),
    [("x", ("x",)), (["x", "\n\n"], ("x", "\n\n")), (["", "x"], ("x",)), (None, ()), ([], ())],
)
def test_stop_strings(until: Any, expected: tuple[str, ...]) -> None:
    assert read(until=until).until == expected


def test_the_length_has_synonyms_in_lm_evals_order() -> None:
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert read(**{name: 7}).new_tokens == 7
    assert read(max_tokens=9, max_new_tokens=8, max_gen_toks=7).new_tokens == 7


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"temperature": "0.7"}, 0.7),
        ({"temperature": 0}, 0.0),
        ({"do_sample": True, "temperature": 0.7}, 0.7),
        ({"do_sample": True}, 1.0),
    ],
)
def test_when_tokens_are_sampled(given: dict[str, Any], temperature: float) -> None:
    assert read(**given).sampling == SamplingOptions(temperature=temperature)


def test_a_nucleus_is_honoured_when_sampling() -> None:
    assert read(do_sample=True, top_p=0.9).sampling == SamplingOptions(1.0, 0.9)
    assert read(do_sample=False, top_p=0.9).sampling == GREEDY


def test_what_else_narrows_the_choice_is_honoured_when_sampling() -> None:
    found = read(do_sample=True, temperature=0.5, top_k=40, min_p=0.1).sampling
    assert found == SamplingOptions(0.5, top_k=40, min_p=0.1)


def test_penalties_are_honoured_when_greedy_too() -> None:
    given = {"repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.2}
    wanted = PenaltyOptions(repetition=1.1, presence=0.5, frequency=0.2)
    assert read(**given).sampling == SamplingOptions(penalties=wanted)


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True},
        {"do_sample": True, "top_k": 0, "min_p": 0.0, "typical_p": 1.0},
        {"do_sample": True, "top_k": -1, "top_p": 1, "num_return_sequences": 1},
        {"top_k": 50, "min_p": 0.1, "do_sample": False},
        {"num_beams": None},
    ],
)
def test_what_asks_for_nothing_is_accepted(given: dict[str, Any]) -> None:
    assert read(**given).sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_beams": 4}, "task t: generation_kwargs.num_beams = 4 is not honoured here"),
        ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size = 3 is not honoured"),
        ({"max_length": 100}, "max_length = 100 is not honoured .*max_gen_toks"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0 must be from 0.01 to 100"),
        ({"do_sample": True, "top_k": -2}, "top_k = -2 must be from -1 to"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p = 0.5 is not honoured"),
        ({"made_up": 1}, "made_up = 1 is not honoured here .honoured: until, max_gen_toks"),
        ({"max_gen_toks": 0}, "max_gen_toks = 0 must be a whole number of 1 or more"),
        ({"max_tokens": 2.5}, "max_tokens = 2.5 must be a whole"),
        ({"max_gen_toks": "many"}, "max_gen_toks = 'many' must be a number"),
        ({"temperature": -1}, "temperature = -1 must be 0 or more"),
        ({"temperature": True}, "temperature = True must be a number"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample = True needs a temperature above 0"),
        ({"do_sample": "yes"}, "do_sample = 'yes' must be true or false"),
        ({"do_sample": True, "top_p": 1.5}, "top_p = 1.5 must be from 1e-06 to 1"),
        ({"until": 5}, "until = 5 must be a text or a list of texts"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        read(**given)
