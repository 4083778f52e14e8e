"""A real engine that is configured again and again holds no more than after the first times."""

from __future__ import annotations

import gc
from itertools import cycle, islice
from pathlib import Path

import psutil
import pytest

from engine.config.settings import EngineConfig
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.chaos.leftovers import Held, check_nothing_left
from tests.engine.test_parity import BASE, make_prompts

WARM_UP = 12  # until every setting ran twice: packs, kernels and allocators are there
SETTINGS = [
    {},
    {"cache.expert_bytes": "100%"},
    {"precision.bits": 8, "io.threads": 3},
    {"prefetch.predictor": "next_gate", "prefetch.depth": 2, "cache.expert_bytes": "20%"},
    {"precision.bits": 4, "cache.scope": "shared"},
    {"io.direct": "off", "transfer.queue": "fifo", "kv.bits": 8},
]
MOST_GROWTH_BYTES = 24_000_000


def reconfigure(engine: Engine, times: int) -> None:
    prompts = make_prompts(1)
    for setting in islice(cycle(SETTINGS), times):
        engine.configure(EngineConfig().overlay({**BASE, **setting}))
        engine.prefill([MicroBatch(prompts[0])])
    engine.release()


def check_flat(engine: Engine, cache: Path, times: int) -> None:
    reconfigure(engine, WARM_UP)
    gc.collect()
    before, files = Held.now(), sorted(cache.rglob("*"))
    memory_bytes = psutil.Process().memory_info().rss
    reconfigure(engine, times)
    check_nothing_left(before, cache)
    assert sorted(cache.rglob("*")) == files
    grown = psutil.Process().memory_info().rss - memory_bytes
    print(f"{times} times: memory grew by {grown / 1e6:.1f} MB")
    assert grown < MOST_GROWTH_BYTES


def test_fifty_reconfigurations_leave_nothing(engine: Engine) -> None:
    check_flat(engine, engine.cache_folder, 50)


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_thousand_reconfigurations_leave_nothing(engine: Engine) -> None:
    check_flat(engine, engine.cache_folder, 1000)
