"""Token counts of a request: at the end, and as far as a stream has come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.serve.openai.formats import Choice
from engine.serve.openai.requests import Generation
from engine.serve.openai.responses import PromptDetails, Usage


def usage_of(choices: Sequence[Choice], prompt_tokens: int) -> Usage:
    """Counts over all choices."""
    generated = sum(choice.tokens for choice in choices)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=generated,
        total_tokens=prompt_tokens + generated,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(one.cached for one in choices)),
    )


@dataclass(frozen=True)
class StreamUsage:
    """What the chunks of a stream say. choices: as they grow; at_end, throughout: where it was
    requested (stream_options.include_usage, continuous_usage_stats)."""

    choices: Sequence[Choice]
    prompt_tokens: int
    at_end: bool
    throughout: bool

    @classmethod
    def of(cls, body: Generation, choices: Sequence[Choice], prompt_tokens: int) -> StreamUsage:
        """As the request wants it."""
        options = body.stream_options
        at_end = options is not None and bool(options.include_usage)
        throughout = options is not None and bool(options.continuous_usage_stats)
        return cls(choices, prompt_tokens, at_end, throughout)

    def so_far(self) -> Usage | None:
        """For a chunk with text."""
        return usage_of(self.choices, self.prompt_tokens) if self.throughout else None

    def total(self) -> Usage | None:
        """For the last chunk."""
        return usage_of(self.choices, self.prompt_tokens) if self.at_end else None
