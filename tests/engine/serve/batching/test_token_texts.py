"""Log probabilities: texts and bytes of the tokens add up to the answer, in every family."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from engine.serve.batching.sequence import LiveSequence, StepOutput
from engine.serve.batching.token_texts import TokenTexts
from engine.serve.openai.formats import ChatFormat, Choice, CompletionFormat
from engine.serve.openai.responses import Usage
from tests.engine.serve.made import want
from tests.engine.serve.tokenizers_of_families import FAMILIES, TEXTS

TOKENIZERS = {name: make() for name, make in FAMILIES.items()}
USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)


def answer(
    tokenizer: Any, tokens: Sequence[int], stop: Sequence[str] = (), logprobs: int = 2
) -> list[StepOutput]:
    """The outputs of a sequence whose model says these tokens."""
    outputs: list[StepOutput] = []
    wanted = want([0], len(tokens), stop=tuple(stop), logprobs=logprobs)
    sequence = LiveSequence(wanted, tokenizer, frozenset(), outputs.append)
    for token in tokens:
        if not sequence.done:
            logits = torch.zeros(1, 1, len(tokenizer))
            logits[0, 0, token] = 5.0
            sequence.accept(logits)
    assert sequence.done
    return outputs


def check(outputs: Sequence[StepOutput]) -> str:
    """What holds for every answer; returns its text."""
    choice = Choice(logprobs=[])
    streamed = CompletionFormat("id", 0, "m", True)
    offset = 0
    for output in outputs:
        choice.add(output)
        piece: Any = streamed.chunk(0, output, None)
        for token, place in zip(
            piece.choices[0].logprobs.tokens, piece.choices[0].logprobs.text_offset, strict=True
        ):
            assert place == offset
            offset += len(token)
        assert offset == len(choice.text)  # after every chunk
    whole: Any = CompletionFormat("id", 0, "m", True).whole([choice], USAGE)
    found = whole.choices[0].logprobs
    assert "".join(found.tokens) == choice.text
    for token, place in zip(found.tokens, found.text_offset, strict=True):
        assert choice.text[place : place + len(token)] == token
    chat: Any = ChatFormat("id", 0, "m", True).whole([choice], USAGE)
    content = chat.choices[0].logprobs.content
    raw = bytes(itertools.chain.from_iterable(one.bytes for one in content))
    assert raw.decode(errors="replace") == choice.text
    for one in content:
        named = [each.token for each in one.top_logprobs if each.logprob == one.logprob]
        assert one.token in named  # also as an alternative it has the text that it has here
    return choice.text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_text_add_up_to_it(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert check(answer(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)
    ends = [*ids[:3], tokenizer.eos_token_id, *ids[3:], tokenizer.eos_token_id]
    assert check(answer(tokenizer, ends)) == tokenizer.decode(ends, skip_special_tokens=True)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_whatever_tokens_come_they_add_up(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    tokens = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=1, max_size=12))
    text = check(answer(tokenizer, tokens))
    if text:
        start = data.draw(st.integers(0, len(text) - 1))
        stop = text[start : start + data.draw(st.integers(1, 3))]
        assert check(answer(tokenizer, tokens, [stop])) == text[: text.index(stop)]


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_a_part_of_a_character_has_its_own_bytes_and_no_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer("x\u20acx", add_special_tokens=False)["input_ids"]
    tokens = [one for output in answer(tokenizer, ids) for one in output.logprobs]
    found = [(one.chosen.text, one.chosen.bytes) for one in tokens if one.chosen.bytes != b"x"]
    assert b"".join(raw or b"" for _, raw in found) == "\u20ac".encode()
    assert [text for text, _ in found] == [""] * (len(found) - 1) + ["\u20ac"]
    assert len(found) > 1


def test_a_word_keeps_its_space_behind_a_special_token() -> None:
    tokenizer = TOKENIZERS["metaspace"]
    the, cat = tokenizer.convert_tokens_to_ids(["\u2581the", "\u2581cat"])
    assert check(answer(tokenizer, [the, tokenizer.eos_token_id, cat])) == "the cat"


def test_an_alternative_is_named_as_it_would_have_been_written() -> None:
    tokenizer = TOKENIZERS["metaspace"]
    the, cat = tokenizer.convert_tokens_to_ids(["\u2581the", "\u2581cat"])
    outputs: list[StepOutput] = []
    sequence = LiveSequence(want([0], 2, logprobs=2), tokenizer, frozenset(), outputs.append)
    for first, second in ((the, tokenizer.eos_token_id), (the, cat)):
        logits = torch.zeros(1, 1, len(tokenizer))
        logits[0, 0, first], logits[0, 0, second] = 5.0, 4.0
        sequence.accept(logits)
    named = [[each.text for each in one.top] for output in outputs for one in output.logprobs]
    assert named == [["the", "</s>"], [" the", " cat"]]


def test_a_special_token_is_named_only_where_it_was_not_chosen() -> None:
    tokenizer = FAMILIES["byte_level"]()
    tokenizer.add_tokens(AddedToken("<|turn|>", special=True))  # no named one, as of chat models
    turn, word = tokenizer.convert_tokens_to_ids(["<|turn|>", "c"])
    texts = TokenTexts(tokenizer)
    assert texts.alternative(turn, "", -1.0).text == "<|turn|>"
    found = [one for output in answer(tokenizer, [word, turn]) for one in output.logprobs][-1]
    assert (found.chosen.text, found.chosen.bytes) == ("", b"")
    assert check(answer(tokenizer, [word, turn, word])) == "cc"
