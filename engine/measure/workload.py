"""Tokenizes a workload's texts."""

from __future__ import annotations

from typing import Any

from engine.contract.requests import Workload
from engine.errors import UsageError
from engine.measure.pass_through import Sequenced
from engine.run.generate import encode_prompt


def tokenize(workload: Workload, tokenizer: Any) -> list[Sequenced]:
    """Prompts cut to their last prompt_tokens, continuations to output_tokens - 1.

    Raises UsageError if the workload has no usable prompt.
    """
    sequences = []
    for number, prompt in enumerate(workload.prompts):
        ids = encode_prompt(tokenizer, prompt, chat=workload.chat)
        forced: list[int] = []
        if number < len(workload.continuations):
            text = workload.continuations[number]
            forced = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ids:
            ids = ids[-workload.prompt_tokens :]
            sequences.append(Sequenced(tuple(ids), tuple(forced[: workload.output_tokens])))
    if not sequences:
        raise UsageError(f"workload '{workload.name}' has no prompts: give at least one text")
    return sequences


def pick(sequences: list[Sequenced], count: int, repeat: int) -> list[Sequenced]:
    """The sequences of one repeat: the next `count`, cycling through all."""
    first = repeat * count
    return [sequences[(first + number) % len(sequences)] for number in range(count)]
