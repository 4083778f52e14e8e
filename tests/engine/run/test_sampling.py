"""Sampling and penalties: transformers' own processors are the oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.run.penalties import Penalties, PenaltyOptions
from engine.run.sampling import Sampler, SamplingOptions, distribution

VOCABULARY = 50


def random_logits(seed: int, rows: int = 1) -> torch.Tensor:
    return 4 * torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.2, 2),
    st.integers(0, 60),
    st.floats(0.05, 1),
    st.floats(0, 0.9),
)
def test_what_is_sampled_from_is_what_transformers_samples_from(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(seed, rows=3)
    options = SamplingOptions(temperature, top_p, top_k=top_k, min_p=min_p)
    found = distribution(logits, options)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    if min_p:
        warpers.append(MinPLogitsWarper(min_p))
    expected = warpers(torch.zeros(3, 1, dtype=torch.long), logits).softmax(-1)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), expected)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.floats(0.1, 2),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=8),
)
def test_the_repetition_penalty_is_transformers_over_prompt_and_answer(
    seed: int, factor: float, prompt: list[int], said: list[int]
) -> None:
    logits = random_logits(seed)
    penalties = Penalties(PenaltyOptions(repetition=factor), prompt)
    for token in said:
        penalties.note(token)
    oracle = RepetitionPenaltyLogitsProcessor(factor)
    expected = oracle(torch.tensor([prompt + said]), logits.clone())
    torch.testing.assert_close(penalties.apply(logits), expected)


def test_frequency_counts_and_presence_does_not_and_the_prompt_is_spared() -> None:
    # OpenAI: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence
    logits = random_logits(1)
    penalties = Penalties(PenaltyOptions(frequency=0.5, presence=1.25), [1, 2, 3])
    for token in (7, 7, 7, 9):
        penalties.note(token)
    change = penalties.apply(logits) - logits
    assert change[0, 7] == pytest.approx(-3 * 0.5 - 1.25)
    assert change[0, 9] == pytest.approx(-0.5 - 1.25)
    change[0, [7, 9]] = 0
    assert not change.any()


def test_a_sampler_penalises_what_it_chose() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    plain = Sampler(SamplingOptions())
    shy = Sampler(SamplingOptions(penalties=PenaltyOptions(presence=1.5)))
    assert [int(plain(logits)) for _ in range(3)] == [0, 0, 0]
    assert [int(shy(logits)) for _ in range(3)] == [0, 1, 0]
    forgetful = Sampler(SamplingOptions(penalties=PenaltyOptions(repetition=1.9)), prompt=[0])
    assert int(forgetful(logits)) == 1


def test_a_bias_is_transformers_sequence_bias_of_single_tokens() -> None:
    logits = random_logits(3)
    oracle = SequenceBiasLogitsProcessor({(4,): 2.5, (9,): -100.0})
    expected = oracle(torch.zeros(1, 1, dtype=torch.long), logits.clone())
    penalties = Penalties(PenaltyOptions(bias=((4, 2.5), (9, -100.0))), [])
    torch.testing.assert_close(penalties.apply(logits), expected)
    banned = int(logits.argmax())
    sampler = Sampler(SamplingOptions(penalties=PenaltyOptions(bias=((banned, -100.0),))))
    assert int(sampler(logits)) == int(logits[0].topk(2).indices[1])


def test_the_strongest_penalties_leave_a_token() -> None:
    options = SamplingOptions(
        0.01, 1e-6, 3, 1, 1.0, PenaltyOptions(repetition=0.01, frequency=2, presence=2)
    )
    sampler = Sampler(options, prompt=range(VOCABULARY))
    logits = 1e4 * random_logits(2)
    assert all(0 <= int(sampler(logits)) < VOCABULARY for _ in range(20))
