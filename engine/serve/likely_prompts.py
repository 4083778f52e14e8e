"""Instructions that a model finds likely, the likeliest first: InstCache (arXiv 2411.13820).

An aligned model has seen what people ask; from where a user's text begins, its own probabilities
say which texts are common. Paths of tokens are walked best first and cut where their negative log
likelihood passes a bound, so that the bound decides how many are found.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

Tokens = tuple[int, ...]
LogProbabilities = Callable[[Sequence[Tokens]], Sequence[torch.Tensor]]
"""Of the next token [V], natural logarithms, behind each sequence."""


@dataclass(frozen=True)
class LikelyPrompt:
    """tokens: without what came before and what ends it; nll: nats, the end included."""

    tokens: Tokens
    nll: float


@dataclass(frozen=True)
class Search:
    """begin: tokens before the text; ends: tokens of which each ends it; bound: nats; longest:
    tokens of a text; together: paths that are asked at once."""

    begin: Tokens
    ends: Collection[int]
    bound: float
    longest: int = 32
    together: int = 8


def likely_prompts(search: Search, ask: LogProbabilities) -> Iterator[LikelyPrompt]:
    """Every text whose path stays below the bound, by rising nll."""
    paths: list[tuple[float, bool, Tokens]] = [(0.0, False, ())]  # (nll, ended, tokens)
    while paths:
        open_: list[tuple[float, Tokens]] = []
        while paths and len(open_) < search.together:
            nll, ended, tokens = heapq.heappop(paths)
            if not ended:
                open_.append((nll, tokens))
            elif open_:  # what these lead to may be likelier
                heapq.heappush(paths, (nll, ended, tokens))
                break
            else:
                yield LikelyPrompt(tokens, nll)
        if not open_:
            continue
        found = ask([(*search.begin, *tokens) for _, tokens in open_])
        for (nll, tokens), logs in zip(open_, found, strict=True):
            for path in _grown(search, nll, tokens, logs):
                heapq.heappush(paths, path)


def _grown(
    search: Search, nll: float, tokens: Tokens, logs: torch.Tensor
) -> Iterator[tuple[float, bool, Tokens]]:
    """Where a path leads below the bound."""
    for token in torch.nonzero(logs >= nll - search.bound).flatten().tolist():
        further = nll - float(logs[token])
        if token in search.ends:
            if tokens:
                yield further, True, tokens
        elif len(tokens) < search.longest:
            yield further, False, (*tokens, token)
