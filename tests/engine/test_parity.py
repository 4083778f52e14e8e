"""The engine against plain transformers: same logits, same tokens, for every family.

float32 compute on weights rounded to bf16, slots for half of the experts; one and three
micro-batches; and bit-identical logits whatever the cache, the eviction and the prefetch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import EXTRA, VOCABULARY, each_family, save_tiny

PROMPT_TOKENS = 19
NEW_TOKENS = 5
BASE = {
    "compute.dtype": "float32",
    "cache.expert_bytes": "50%",
    "prefill.chunk_tokens": 8,
    "transfer.chunk_bytes": 4096,
    "kv.max_tokens": 64,
}
EXACT_SETTINGS = [
    {},
    {"cache.expert_bytes": "100%"},
    {"cache.expert_bytes": "20%"},
    {"cache.eviction": "none"},
    {"cache.scope": "shared"},
    {"prefetch.predictor": "next_gate", "prefetch.depth": 1},
    {"prefetch.predictor": "next_gate", "prefetch.depth": 4, "prefetch.extra_experts": 2},
    {"prefetch.predictor": "next_gate", "prefetch.depth": 2, "cache.expert_bytes": "20%"},
    {"batch.order": "routed", "transfer.queue": "fifo", "io.threads": 1, "io.direct": "off"},
]


@pytest.fixture(scope="module", params=each_family())
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Path]]:
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    engine = Engine(folder, CpuDevice(), folder / "cache")
    yield engine, folder
    engine.close()


@pytest.mark.parametrize("count", [1, 3])
def test_logits_and_greedy_tokens_equal_plain_transformers(
    opened: tuple[Engine, Path], count: int
) -> None:
    engine, folder = opened
    engine.configure(EngineConfig().overlay({**BASE, "batch.count": count}))
    prompts = make_prompts(count)
    tokens, last = generate(engine, prompts)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for prompt, own, logits in zip(prompts, tokens, last, strict=True):
        expected = reference_logits(reference, prompt, own[:-1])
        assert expected.argmax(-1).tolist() == own
        largest = expected[-1].abs().max()
        assert (logits - expected[-1]).abs().max() <= 1e-4 * largest


def test_exact_settings_change_no_bit(opened: tuple[Engine, Path]) -> None:
    engine, _ = opened
    prompts = make_prompts(1)
    outcomes = []
    for setting in EXACT_SETTINGS:
        engine.configure(EngineConfig().overlay({**BASE, **setting}))
        outcomes.append(generate(engine, prompts))
        counters = engine.residency.counters
        assert sum(counters.hits.values()) + sum(counters.misses.values()) > 0
    first_tokens, first_logits = outcomes[0]
    for setting, (tokens, logits) in zip(EXACT_SETTINGS, outcomes, strict=True):
        assert tokens == first_tokens, setting
        assert torch.equal(logits[0], first_logits[0]), setting


def test_the_hybrid_and_biased_families_are_among_them() -> None:
    assert {"jamba", "gpt_oss", "deepseek_v3", "granitemoe"} <= set(EXTRA)
    assert len(EXTRA) >= 14


def make_prompts(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, VOCABULARY, (1, PROMPT_TOKENS), generator=generator) for _ in range(count)
    ]


def reference_logits(model: Any, prompt: torch.Tensor, following: list[int]) -> torch.Tensor:
    """Plain transformers: the prompt at once, then token by token. [1 + following, V]"""
    rows, cache = [], None
    with torch.no_grad():
        for tokens in [prompt, *(torch.tensor([[token]]) for token in following)]:
            output = model(tokens, cache=cache, use_cache=True)
            cache = output.cache
            rows.append(output.logits[0, -1])
    return torch.stack(rows)


def generate(
    engine: Engine, prompts: list[torch.Tensor]
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Greedy tokens of each prompt, and the last logits [V] of each."""
    batches = [MicroBatch(prompt) for prompt in prompts]
    logits = engine.prefill(batches)
    tokens = [[int(rows[0, -1].argmax())] for rows in logits]
    for _ in range(NEW_TOKENS - 1):
        for batch, own in zip(batches, tokens, strict=True):
            batch.tokens = torch.tensor([[own[-1]]])
        logits = engine.forward(batches, "decode")
        for own, rows in zip(tokens, logits, strict=True):
            own.append(int(rows[0, -1].argmax()))
    return tokens, [rows[0, -1] for rows in logits]
