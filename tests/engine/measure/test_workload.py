"""Texts of a workload, cut to the tokens that are wanted."""

from __future__ import annotations

from engine.contract.requests import Workload
from engine.measure.workload import tokenize


class Letters:
    """A tokenizer of single characters that counts them."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        self.characters += len(text)
        return {"input_ids": [ord(one) for one in text]}


def test_a_long_prompt_is_cut_to_its_end_before_it_is_tokenized() -> None:
    letters = Letters()
    prompt, continuation = "a" * 10_000_000 + "the end", "so it goes" + "b" * 10_000_000
    work = Workload("long", (prompt,), (continuation,), prompt_tokens=7, output_tokens=10)
    (found,) = tokenize(work, letters)
    assert "".join(map(chr, found.prompt)) == "the end"
    assert "".join(map(chr, found.forced)) == "so it goes"
    assert letters.characters < 10_000
