"""Generation: greedy and seeded sampling, streaming whole characters, limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config.settings import EngineConfig
from engine.errors import EvaluationError, InfeasibleError, ModelError, UsageError
from engine.run.engine import Engine
from engine.run.generate import encode_prompt, end_tokens, generate
from engine.run.sampling import Sampler, SamplingOptions
from tests.engine.conftest import TEXT


def test_greedy_text_equals_transformers_generate(engine: Engine, tiny_folder: Path) -> None:
    engine.configure(EngineConfig().overlay({"compute.dtype": "float32", "kv.max_tokens": 80}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ids = encode_prompt(tokenizer, TEXT[:40], chat=False)
    pieces: list[str] = []
    result = generate(
        engine, tokenizer, ids, max_tokens=12, sampling=SamplingOptions(), on_text=pieces.append
    )
    reference = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    expected = reference.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    own = expected[0, len(ids) :].tolist()
    own = own[: own.index(2)] if 2 in own else own
    assert list(result.tokens) == own
    assert "".join(pieces) == result.text
    assert result.prompt_tokens == len(ids)


def test_a_seed_repeats_and_another_one_differs() -> None:
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))

    def draw(seed: int) -> list[list[int]]:
        sampler = Sampler(SamplingOptions(temperature=1.5, seed=seed))
        return [sampler(logits).tolist() for _ in range(5)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_small_nucleus_is_greedy() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(SamplingOptions(temperature=1.0, top_p=1e-6))
    assert torch.equal(sampler(logits), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-5])
def test_next_to_no_temperature_is_greedy(temperature: float) -> None:
    logits = 100 * torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(SamplingOptions(temperature=temperature))
    assert torch.equal(sampler(logits), logits.argmax(-1))


def test_a_prompt_beyond_the_kv_room_is_refused_with_the_limit(
    engine: Engine, tiny_folder: Path
) -> None:
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 8}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    with pytest.raises(InfeasibleError, match=r"kv\.max_tokens is 8"):
        generate(engine, tokenizer, [3] * 9, max_tokens=1, sampling=SamplingOptions())
    with pytest.raises(UsageError, match="prompt is empty"):
        generate(engine, tokenizer, [], max_tokens=1, sampling=SamplingOptions())


def test_the_models_own_chat_template_is_used(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    assert encode_prompt(tokenizer, "engine", chat=True) == tokenizer("engine\n")["input_ids"]
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        encode_prompt(tokenizer, "engine", chat=True)


@pytest.mark.parametrize(
    "template",
    ["{% if x %} no end", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", {"rag": "x", "tools": "y"}],
)
def test_a_chat_template_that_fails_is_one_sentence(tiny_folder: Path, template: Any) -> None:
    # templates are code of the checkpoint; several without a default are none to choose
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=r"chat template cannot be used .*--raw"):
        encode_prompt(tokenizer, "engine", chat=True)


def test_a_token_without_an_embedding_is_said(engine: Engine, tiny_folder: Path) -> None:
    # a [PAD] or role token added to the tokenizer and not to the model: IndexError of the lookup
    engine.configure(EngineConfig().overlay({"kv.max_tokens": 8}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    with pytest.raises(ModelError, match=r"gives token 300, the model has 300"):
        generate(engine, tokenizer, [5, 300], max_tokens=1, sampling=SamplingOptions())


def test_an_empty_list_of_end_tokens_leaves_those_of_the_config(engine: Engine) -> None:
    engine.model.model.generation_config.eos_token_id = []
    assert end_tokens(engine) == frozenset([2])


def test_a_stop_string_ends_the_answer_before_it_and_saves_the_rest(
    engine: Engine, tiny_folder: Path
) -> None:
    engine.configure(EngineConfig().overlay({"compute.dtype": "float32", "kv.max_tokens": 80}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ids = encode_prompt(tokenizer, TEXT[:40], chat=False)
    whole = generate(engine, tokenizer, ids, max_tokens=12, sampling=SamplingOptions())
    word = whole.text[1:2]  # later tokens are parts of characters
    stopped = generate(
        engine, tokenizer, ids, max_tokens=12, sampling=SamplingOptions(), stop=["", "zzzz", word]
    )
    assert stopped.text == whole.text[: whole.text.index(word)]
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    assert len(stopped.tokens) < len(whole.tokens)


def test_logits_that_become_nan_are_said_not_generated(
    engine: Engine, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.configure(EngineConfig())
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    forward = engine.forward

    def broken(*arguments: Any, **named: Any) -> Any:
        return [logits * float("nan") for logits in forward(*arguments, **named)]

    monkeypatch.setattr(engine, "forward", broken)
    with pytest.raises(EvaluationError, match=r"NaN at token 1 .*compute\.dtype=bfloat16"):
        generate(engine, tokenizer, [3] * 5, max_tokens=4, sampling=SamplingOptions())
