"""Fills the response cache ahead: `python scripts/fill_response_cache.py FILE.yaml --bound 12`.

FILE is an exported config with serve.response_cache_entries set. The model enumerates texts that it
finds likely after --begin (its chat template's opening where it has one), up to --until, and
answers each greedily, as it would answer a client with the same --max-tokens. Prints how many it
found, at which cost; `tune deploy FILE` serves the answers.

The search is InstCache's (arXiv 2411.13820): an aligned model has seen what people ask, so paths of
tokens are explored best first and cut where their negative log likelihood exceeds a bound.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from engine.config.settings import EngineConfig
from engine.device.registry import open_device
from engine.model.chat_template import TemplateRenderer
from engine.run.engine import Engine
from engine.run.generate import generate
from engine.run.micro_batch import MicroBatch
from engine.run.sampling import SamplingOptions
from engine.serve.batching.response_cache import ResponseCache, response_cache_path
from engine.serve.batching.sequence import SequenceRequest, StepOutput
from tuner.deployment.document import load_deployment
from tuner.folders import cache_folder, resolve_model

USER = "\x00"  # placeholder for the user's text in the chat template

Tokens = tuple[int, ...]
LogProbabilities = Callable[[Sequence[Tokens]], Sequence[torch.Tensor]]
"""Returns natural log-probabilities [V] of the next token after each sequence."""


@dataclass(frozen=True)
class LikelyPrompt:
    """tokens: without the tokens before and after the text; nll: nats, including the end."""

    tokens: Tokens
    nll: float


@dataclass(frozen=True)
class Search:
    """begin: tokens before the text; ends: tokens that each end it; bound: nats; longest: most
    tokens of a text; together: paths evaluated at once."""

    begin: Tokens
    ends: Collection[int]
    bound: float
    longest: int = 32
    together: int = 8


def likely_prompts(search: Search, ask: LogProbabilities) -> Iterator[LikelyPrompt]:
    """Yields every text whose path stays below the bound, by ascending nll."""
    paths: list[tuple[float, bool, Tokens]] = [(0.0, False, ())]  # (nll, ended, tokens)
    while paths:
        open_: list[tuple[float, Tokens]] = []
        while paths and len(open_) < search.together:
            nll, ended, tokens = heapq.heappop(paths)
            if not ended:
                open_.append((nll, tokens))
            elif open_:  # their continuations may be likelier
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
    """Yields the extensions of a path that stay below the bound."""
    for token in torch.nonzero(logs >= nll - search.bound).flatten().tolist():
        further = nll - float(logs[token])
        if token in search.ends:
            if tokens:
                yield further, True, tokens
        elif len(tokens) < search.longest:
            yield further, False, (*tokens, token)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--bound", type=float, default=12.0, help="nats of a whole text")
    parser.add_argument("--most", type=int, default=1000, help="texts")
    parser.add_argument("--longest", type=int, default=24, help="tokens of a text")
    parser.add_argument("--begin", help="text before; default: the chat template's")
    parser.add_argument("--until", help="text that ends it; default: the chat template's")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    arguments = parser.parse_args()
    deployment = load_deployment(arguments.file)
    config = EngineConfig.from_dict(deployment.engine)
    assert config.serve.response_cache_entries, (
        f"{arguments.file}: engine.serve.response_cache_entries is 0: set it"
    )
    folder = Path(resolve_model(deployment.model.id))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    frame = frame_of(tokenizer, arguments.begin, arguments.until)
    engine = Engine(folder, open_device(config.device.name), cache_folder())
    engine.configure(config)
    search = Search(frame.begin, frame.ends, arguments.bound, arguments.longest, config.batch.count)
    path = response_cache_path(config, engine.facts, cache_folder())
    with contextlib.closing(ResponseCache(path, config.serve.response_cache_entries)) as answers:
        started = time.monotonic()
        found = list(islice(likely_prompts(search, Asking(engine)), arguments.most))
        listed_s = time.monotonic() - started
        for one in found:
            keep(engine, tokenizer, answers, frame, one, arguments.max_tokens)
        answered_s = time.monotonic() - started - listed_s
        for one in found[:10]:
            print(f"{one.nll:6.2f} {tokenizer.decode(one.tokens)!r}")
        print(
            f"{len(found)} texts of at most {arguments.bound:g} nats in {listed_s:.1f} s, answered "
            f"in {answered_s:.1f} s; {len(answers)} answers in {path}"
        )
    return 0


@dataclass(frozen=True)
class Frame:
    """The tokens around a user's text. after: behind it; ends: tokens that end it: the first token
    of `after`, or any that begins with --until."""

    begin: tuple[int, ...]
    after: tuple[int, ...]
    ends: frozenset[int]


def frame_of(tokenizer: Any, begin: str | None, until: str | None) -> Frame:
    """Builds the frame from the chat template, or from the options."""
    if begin is None and tokenizer.chat_template:
        message = [{"role": "user", "content": USER}]
        text = TemplateRenderer().render(tokenizer, message, add_generation_prompt=True)
        begin, after = text.split(USER)
    else:
        begin, after = begin or "", ""
    first = tokenizer(begin, add_special_tokens=False)["input_ids"] or [tokenizer.bos_token_id]
    behind = tokenizer(after, add_special_tokens=False)["input_ids"]
    ends = {behind[0]} if behind else set()
    if until is not None or not ends:
        wanted = until or "\n"
        vocabulary = range(len(tokenizer))
        ends |= {token for token in vocabulary if tokenizer.decode([token]).startswith(wanted)}
    return Frame(tuple(first), tuple(behind), frozenset(ends))


class Asking:
    """Adapts the engine to LogProbabilities."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, sequences: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
        """Runs each sequence as a micro-batch; sequences of one length run together."""
        found: dict[tuple[int, ...], torch.Tensor] = {}
        for length in {len(one) for one in sequences}:
            alike = [one for one in sequences if len(one) == length]
            batches = [MicroBatch(torch.tensor([one])) for one in alike]
            for one, rows in zip(alike, self._engine.prefill(batches), strict=True):
                found[one] = torch.log_softmax(rows[0, -1].float().cpu(), dim=-1)  # [V]
        return [found[one] for one in sequences]


def keep(
    engine: Engine,
    tokenizer: Any,
    answers: ResponseCache,
    frame: Frame,
    prompt: LikelyPrompt,
    max_tokens: int,
) -> None:
    """Answers the prompt and stores the answer."""
    tokens = (*frame.begin, *prompt.tokens, *frame.after)
    assert engine.config is not None
    limit = min(max_tokens, engine.config.kv.max_tokens - len(tokens))
    wanted = SequenceRequest(tokens, limit, SamplingOptions())
    if answers.find(wanted) is None:
        done = generate(
            engine, tokenizer, list(tokens), max_tokens=limit, sampling=SamplingOptions()
        )
        finish: Any = "length" if len(done.tokens) >= limit else "stop"
        answers.keep(wanted, done.text, StepOutput(tokens=len(done.tokens), finish=finish))


if __name__ == "__main__":
    sys.exit(main())
