"""What prompts begin with alike is computed once, and answers stay what they are alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.errors import ConfigError
from engine.run.engine import Engine
from engine.run.generate import generate
from engine.run.sampling import SamplingOptions
from engine.serve.batching.prefix_cache import LEAST_TOKENS, Prefixes, common_tokens
from tests.engine.conftest import TEXT
from tests.engine.serve.batching.test_scheduler import ask
from tests.engine.serve.made import configure, looping, serving, want

ROOM = 96


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> list[int]:
    return tokenizer(TEXT)["input_ids"]


@pytest.fixture
def shared(engine: Engine) -> Any:
    """The engine with a prefix cache; as before afterwards."""
    configure(engine, **{"prefill.chunk_tokens": 16, "serve.prefix_cache_tokens": ROOM})
    yield engine
    configure(engine)


def test_answers_are_those_of_prompts_read_whole(
    shared: Engine, tokenizer: Any, ids: list[int]
) -> None:
    system, turns = ids[:40], [ids[50:60], ids[70:77], ids[80:99], ids[50:60]]
    prompts = [system + turn for turn in turns]
    expected = [
        generate(shared, tokenizer, p, max_tokens=10, sampling=SamplingOptions()).text
        for p in prompts
    ]
    with looping(shared, tokenizer) as (loop, meters, _):
        said, cached = [], []
        for prompt in prompts:  # one behind the other: what is asked together is read together
            (received,) = ask(loop, want(prompt, 10))
            said.append(received.text)
            cached.append(received.wait().cached)
    assert said == expected
    assert cached[:2] == [0, 0]  # the second shows that the beginning is shared
    assert cached[2:] == [40, 40]
    assert meters.totals.cached_tokens == 80


def test_samples_of_one_prompt_read_it_once(shared: Engine, tokenizer: Any, ids: list[int]) -> None:
    alone = generate(shared, tokenizer, ids[:20], max_tokens=6, sampling=SamplingOptions()).text
    forwards: list[int] = []
    forward = shared.forward

    def counting(batches: Any, phase: Any, consume: Any = None) -> Any:
        forwards.extend(batch.tokens.numel() for batch in batches if phase == "prefill")
        return forward(batches, phase, consume)

    shared.forward = counting  # type: ignore[method-assign]
    try:
        with looping(shared, tokenizer) as (loop, _, _):
            received = ask(loop, *[want(ids[:20], 6)] * 3)
            assert [one.text for one in received] == [alone] * 3
            assert sorted(one.wait().cached for one in received) == [0, 20, 20]
    finally:
        del shared.forward  # type: ignore[method-assign]
    assert sum(forwards) == 20


def test_clients_read_how_much_was_cached(shared: Engine, tokenizer: Any) -> None:
    prompt = TEXT[:400]
    with serving(shared, tokenizer) as server:
        usages = [
            server.client.completions.create(
                model="tiny", prompt=prompt + f" {n}", max_tokens=2, temperature=0
            ).usage
            for n in range(3)
        ]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage]
    assert cached[0] == 0
    assert cached[2] >= LEAST_TOKENS


def test_no_more_is_kept_than_there_is_room_for(engine: Engine) -> None:
    config = engine.model.model.config
    layers = config.get_text_config().num_hidden_layers
    prefixes = Prefixes(config, 50)

    class Layer:
        keys = values = torch.zeros(1, 2, 100, 4)

    class Cache:
        layers: list[Any]

    Cache.layers = [Layer] * layers
    for base in (1000, 2000, 3000):
        for tail in (1, 2):
            prompt = (*range(base, base + 30), tail, *range(30))
            prefixes.note(prompt, Cache)
            assert prefixes.tokens <= 50
    assert prefixes.start(tuple(range(3000, 3040)))[1] == 30
    assert prefixes.start(tuple(range(1000, 1040))) == (None, 0)
    assert prefixes.start(tuple(range(3000, 3010))) == (None, 0)  # too short to be worth it
    cache, shared = prefixes.start(tuple(range(3000, 3030)))
    assert (shared, cache.get_seq_length()) == (29, 29)  # one is left to read


def test_common_beginnings_are_counted_in_tokens() -> None:
    assert common_tokens((1, 2, 3), (1, 2, 4)) == 2
    assert common_tokens((1,), (1, 2)) == 1
    assert common_tokens((), (1,)) == 0


def test_what_cannot_be_cut_is_refused(engine: Engine) -> None:
    with pytest.raises(ConfigError, match="needs keys and values whole"):
        configure(engine, **{"serve.prefix_cache_tokens": 64, "kv.keep_fraction": 0.5})
    configure(engine)


def test_beginnings_count_into_the_memory(engine: Engine) -> None:
    configure(engine)
    assert engine.memory is not None
    before = engine.memory.kv_bytes
    configure(engine, **{"serve.prefix_cache_tokens": 64})
    assert engine.memory.kv_bytes - before == 64 * engine.facts.kv_bytes_per_token * 2
    configure(engine)
