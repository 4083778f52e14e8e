"""A trace of single sequences, regrouped, is what those batches would have recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import UsageError
from engine.measure.pass_through import Sequenced, run_pass
from engine.measure.recording import TraceRecorder
from engine.replay.regroup import regroup
from engine.run.engine import Engine
from engine.trace.trace import Trace

BASE: dict[str, Any] = {
    "cache.expert_bytes": "40%",
    "prefill.chunk_tokens": 8,
    "kv.max_tokens": 64,
    "compute.dtype": "float32",
}
OUTPUT_TOKENS = 5


@pytest.fixture(scope="module")
def opened(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    engine = Engine(tiny_folder, CpuDevice(), tmp_path_factory.mktemp("cache"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def sequences() -> list[Sequenced]:
    rng = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 290, (count,), generator=rng).tolist())

    return [Sequenced(ids(13), ids(OUTPUT_TOKENS)) for _ in range(6)]


def recorded(engine: Engine, sequences: list[Sequenced], **overlay: Any) -> Trace:
    engine.configure(EngineConfig().overlay({**BASE, **overlay}))
    recorder = TraceRecorder(engine.facts)
    engine.record(recorder)
    run_pass(engine, sequences, OUTPUT_TOKENS, seed=0)
    engine.record(None)
    return recorder.trace()


@pytest.mark.parametrize(("count", "size", "chunk"), [(1, 1, 4), (2, 1, 8), (1, 4, 8), (2, 2, 5)])
def test_regrouped_equals_recorded(
    opened: Engine, sequences: list[Sequenced], count: int, size: int, chunk: int
) -> None:
    single = recorded(opened, sequences)
    overlay = {"batch.count": count, "batch.size": size, "prefill.chunk_tokens": chunk}
    wanted = recorded(opened, sequences, **overlay)
    found = regroup(single, count, size, chunk, together=len(sequences))
    assert found.passes == wanted.passes
    assert np.array_equal(found.experts, wanted.experts)
    assert found.look_ahead is not None
    assert found.look_ahead.shape == wanted.look_ahead.shape  # type: ignore[union-attr]
    assert np.allclose(found.probabilities, wanted.probabilities, atol=2e-3)  # type: ignore[arg-type]


def test_repeats_stay_apart(opened: Engine, sequences: list[Sequenced]) -> None:
    found = regroup(recorded(opened, sequences), 4, 1, 8, together=3)
    groups = {item.group: len(item.tokens) for item in found.passes}
    assert groups == {0: 3, 1: 3}


def test_what_ran_together_cannot_be_taken_apart(
    opened: Engine, sequences: list[Sequenced]
) -> None:
    together = recorded(opened, sequences, **{"batch.count": 2})
    with pytest.raises(UsageError, match=r"batch\.count=1"):
        regroup(together, 1, 1, 8, together=6)
