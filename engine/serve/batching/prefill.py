"""Chunked prefill with prefix reuse and deduplication.

In: new sequences, of any lengths. Out: the logits after each prompt, their kv_caches filled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.serve.batching.prefix_cache import Prefixes
from engine.serve.batching.sequence import LiveSequence


class PromptReading:
    """Runs the prefill of one engine configuration; a new configuration needs a new object."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prefixes: Prefixes | None = None
        assert engine.config is not None, "configure first"
        if engine.config.serve.prefix_cache_tokens:
            capacity = engine.config.serve.prefix_cache_tokens
            self._prefixes = Prefixes(engine.model.model.config, capacity)

    def read(self, sequences: Sequence[LiveSequence]) -> list[torch.Tensor]:
        """Prefill the prompts. Returns the logits [1, 1, V] after each; sets `cached` of a
        sequence to the number of its prompt tokens that were reused."""
        if self._prefixes is None:
            return read_prompts(self._engine, sequences)
        firsts: dict[tuple[int, ...], LiveSequence] = {}
        for one in sequences:
            firsts.setdefault(one.wanted.prompt, one)
        with torch.inference_mode():
            for prompt, one in firsts.items():
                one.batch.kv, one.cached = self._prefixes.start(prompt)
        logits = read_prompts(self._engine, list(firsts.values()))
        found = dict(zip(firsts, logits, strict=True))
        with torch.inference_mode():
            for prompt, one in firsts.items():
                self._prefixes.note(prompt, one.batch.kv)
            for one in sequences:
                first = firsts[one.wanted.prompt]
                if one is not first:
                    one.batch.kv, one.cached = _forked(first.batch.kv), len(one.wanted.prompt)
        return [found[one.wanted.prompt] for one in sequences]


def read_prompts(engine: Engine, sequences: Sequence[LiveSequence]) -> list[torch.Tensor]:
    """Run the uncached part of the prompts, of any lengths, through the engine in chunks.
    Returns the logits [1, 1, V] after each."""
    engine.begin_sequences()
    prompts = [torch.tensor([one.wanted.prompt]) for one in sequences]  # [1, S]
    done = [one.cached for one in sequences]
    logits: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    while left := [n for n, prompt in enumerate(prompts) if done[n] < prompt.shape[1]]:
        batches: list[MicroBatch] = []
        for number in left:
            length = prompts[number].shape[1]
            end = min(length, done[number] + engine.chunk_tokens(length))
            sequences[number].batch.tokens = prompts[number][:, done[number] : end]
            batches.append(sequences[number].batch)
            done[number] = end
        for number, rows in zip(left, engine.forward(batches, "prefill"), strict=True):
            logits[number] = rows
    return logits


def _forked(cache: Any) -> Any:
    """A separate kv_cache with the same keys and values."""
    return copy.deepcopy(cache)
