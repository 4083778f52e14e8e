"""Tokenizes a workload's texts."""

from __future__ import annotations

from typing import Any

from engine.contract.requests import Workload
from engine.errors import UsageError
from engine.measure.pass_through import Sequenced
from engine.model.chat_template import TemplateRenderer
from engine.model.tokenizer import encode_enough
from engine.run.generate import encode_prompt

# More than any tokenizer's longest token but runs of spaces, so that the end has enough tokens.
_CHARACTERS_PER_TOKEN = 128
_MARGIN = 4096


def tokenize(
    workload: Workload, tokenizer: Any, renderer: TemplateRenderer | None = None
) -> list[Sequenced]:
    """Prompts cut to their last prompt_tokens, continuations to output_tokens - 1. A text far
    longer than that is cut before it is tokenized: its end, in a chat too, is all that counts.

    Raises UsageError if the workload has no usable prompt.
    """
    sequences = []
    renderer = renderer or TemplateRenderer()
    characters = workload.prompt_tokens * _CHARACTERS_PER_TOKEN + _MARGIN
    for number, prompt in enumerate(workload.prompts):
        end = prompt[-characters:]
        ids = encode_prompt(tokenizer, end, chat=workload.chat, renderer=renderer)
        forced: list[int] = []
        if number < len(workload.continuations):
            text = workload.continuations[number]
            forced = encode_enough(
                tokenizer, text, workload.output_tokens, add_special_tokens=False
            )
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
