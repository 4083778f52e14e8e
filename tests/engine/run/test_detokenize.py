"""Streams of text: spaces and characters survive, whatever tokens they are cut into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.run.detokenize import TextPieces


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """As Llama's: a space is part of the word behind it, and the first word loses it."""
    vocabulary = {"<s>": 0, "\u2581the": 1, "\u2581cat": 2, "s": 3}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")


def stream(tokenizer: Any, tokens: list[int]) -> tuple[list[str], TextPieces]:
    pieces = TextPieces(tokenizer)
    found = [pieces.push(token) for token in tokens]
    return [*found, pieces.finish()], pieces


def test_a_space_that_the_tokenizer_drops_in_front_stays_between_words(
    words: PreTrainedTokenizerFast,
) -> None:
    found, pieces = stream(words, [1, 2, 3, 1])
    assert found == ["the", " cat", "s", " the", ""]
    assert pieces.text == words.decode([1, 2, 3, 1])


def test_a_character_comes_when_its_last_byte_does(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    ids = tokenizer("a\u20acb")["input_ids"]
    found, pieces = stream(tokenizer, ids)
    assert len(ids) == 5
    assert found == ["a", "", "", "\u20ac", "b", ""]
    assert pieces.text == "a\u20acb"


def test_bytes_that_are_no_character_do_not_hold_the_stream_up(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    torn = tokenizer("\u20ac")["input_ids"][0]
    found, pieces = stream(tokenizer, [torn] * 40)
    assert sum(map(bool, found)) == 3
    assert pieces.text == "\ufffd" * 40
