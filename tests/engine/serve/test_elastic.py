"""Unreserved KV memory holds experts, and is given back when it is needed."""

from __future__ import annotations

from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.errors import ConfigError
from engine.memory.plan import resolve
from engine.run.engine import Engine
from engine.run.generate import generate
from engine.run.sampling import SamplingOptions
from tests.engine.conftest import TEXT
from tests.engine.serve.batching.test_scheduler import ask
from tests.engine.serve.made import ROOM, configure, eventually, looping, want

FEW = {"cache.expert_bytes": "25%"}


def open_slots(engine: Engine) -> int:
    return sum(engine.live.policy.cache.slots_by_pool)


def test_answers_stay_and_slots_follow_the_load(engine: Engine, tokenizer: Any) -> None:
    configure(engine, **FEW)
    base = open_slots(engine)
    ids = tokenizer(TEXT)["input_ids"]
    prompts = [ids[start : start + 20 + start] for start in range(5)]
    expected = [
        generate(engine, tokenizer, p, max_tokens=12, sampling=SamplingOptions()).text
        for p in prompts
    ]
    configure(engine, **FEW, **{"kv.elastic": True})
    plan = engine.live.memory
    assert plan.elastic_slots > 0
    assert open_slots(engine) == base  # no slot is open before anybody is served
    opened_fractions: list[float] = []
    open_elastic = engine.open_elastic

    def watching(fraction: float) -> None:
        open_elastic(fraction)
        opened_fractions.append(fraction)
        engine.live.policy.cache.check_integrity()
        assert open_slots(engine) <= base + plan.elastic_slots * fraction

    engine.open_elastic = watching  # type: ignore[method-assign]
    try:
        with looping(engine, tokenizer) as (loop, _, _):
            received = ask(loop, *(want(prompt, 12) for prompt in prompts))
            assert [one.text for one in received] == expected
            (large,) = ask(loop, want(ids[:20], ROOM - 20))
            large.wait()
            eventually(lambda: loop.running == 0)
    finally:
        del engine.open_elastic  # type: ignore[method-assign]
    assert min(opened_fractions) < max(opened_fractions) <= 1.0
    assert (
        min(opened_fractions) <= 1 - ROOM / (3 * ROOM) + 1e-9
    )  # one of three rows reserves all it has
    configure(engine)


def test_what_is_lent_never_passes_what_is_free(engine: Engine) -> None:
    config, plan = resolve(
        EngineConfig().overlay(
            {
                "compute.dtype": "float32",
                "batch.count": 3,
                "kv.elastic": True,
                "cache.expert_bytes": "25%",
            }
        ),
        engine.facts,
    )
    record = plan.slots_bytes // plan.slots
    assert 0 < plan.elastic_slots * record <= plan.kv_bytes
    fixed = resolve(config.overlay({"kv.elastic": False}), engine.facts)[1]
    assert plan.total_bytes == fixed.total_bytes  # a border that moves takes nothing


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kv.keep_fraction": 0.5}, "counts keys and values by tokens"),
        ({"device.name": "cuda:0"}, "cannot: set kv.elastic to false"),
        ({"precision.low_bits": 4, "precision.scheme": "gate_threshold"}, "slots of one size"),
    ],
)
def test_what_cannot_be_lent_is_refused(
    engine: Engine, settings: dict[str, Any], says: str
) -> None:
    config = EngineConfig().overlay({"kv.elastic": True, **settings})
    with pytest.raises(ConfigError, match=says):
        resolve(config, engine.facts)
