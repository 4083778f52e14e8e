"""Whole passes of one decoded token: the bits, the decisions and the events of the model's own
forward, whatever is resident."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.native.library import Threads
from engine.native.values import Layers
from engine.policy.events import Need
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.native_pass import NativePass
from tests.engine.families import COMMON, each_family, save_tiny
from tests.fakes.listener import Listener
from tests.requirements import require_native

require_native()

WITH_ROUTERS = ("mixtral", "olmoe", "qwen3_moe")
WITH_OWN_BLOCKS = ("dots1", "glm4_moe", "qwen2_moe")  # shared experts, other routers
RECORD_BYTES = 12288  # of an expert at 4 bits
TOKENS = (5, 9, 11, 3, 60, 2)


def run(
    folder: Path,
    cache: Path,
    batches: Sequence[int] = (2,),
    recorder: Listener | None = None,
    apart: bool = False,
    **values: Any,
) -> tuple[list[torch.Tensor], Any]:
    """Logits of prompts and of tokens one by one, and what the policy counted. apart: prompts of
    other lengths in each micro-batch."""
    engine = Engine(folder, CpuDevice(), cache)
    try:
        count = {"batch.size": max(batches), "batch.count": len(batches), "kv.max_tokens": 80}
        engine.configure(EngineConfig().overlay({**count, **values}))
        if recorder is not None:
            engine.record(recorder)
        group = [MicroBatch(torch.arange(4, 4 + 12 * size).view(size, 12)) for size in batches]
        if apart:
            for number, batch in enumerate(group):
                batch.tokens = batch.tokens[:, : 12 - 5 * number]
            found = [logits for batch in group for logits in engine.prefill([batch])]
        else:
            found = engine.prefill(group)
        for token in TOKENS:
            for batch in group:
                size = batch.tokens.shape[0]
                batch.tokens = torch.arange(token, token + size)[:, None]
            found += engine.forward(group, "decode")
        engine.residency.policy.cache.check_integrity()
        return found, engine.residency.counters
    finally:
        engine.close()


def both(
    monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path, **values: Any
) -> tuple[list[torch.Tensor], int]:
    """Check that logits and counters are the same without native passes. Returns the logits, and
    the number of calls that ran experts too."""
    calls: list[int] = []
    layers = Threads.layers
    with monkeypatch.context() as patch:

        def note(self: Threads, given: Layers) -> int:
            if given.records:  # else it stops before the experts
                calls.append(1)
            return layers(self, given)

        patch.setattr(Threads, "layers", note)
        found, counted = run(folder, cache, **values)
    with monkeypatch.context() as patch:
        patch.setattr(NativePass, "of", lambda model: None)
        expected, counted_before = run(folder, cache, **values)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counted == counted_before
    return found, len(calls)


@pytest.mark.parametrize("family", each_family())
def test_every_family_decodes_the_same_bits(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    values = {"precision.bits": 8, "precision.non_expert_bits": 8}
    _, calls = both(monkeypatch, folder, tmp_path / "a", **values)
    assert (calls > 0) == (family in WITH_ROUTERS), f"{family}: {calls} calls"
    passes = Engine(folder, CpuDevice(), tmp_path / "a").passes.native
    assert (passes is not None) == (family in WITH_ROUTERS + WITH_OWN_BLOCKS)


@pytest.mark.parametrize("slots", [3, 6, 12, 24])  # of 24 experts
@pytest.mark.parametrize("eviction", ["lru", "lfu", "none"])
def test_every_cache_size_gives_the_same_bits_and_decisions(
    slots: int, eviction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("olmoe", tmp_path / "model")
    values = {"precision.bits": 4, "cache.eviction": eviction}
    size = {"cache.expert_bytes": slots * RECORD_BYTES}
    found, _ = both(monkeypatch, folder, tmp_path / "a", **values, **size)
    resident, _ = run(folder, tmp_path / "a", **values)
    assert all(torch.equal(a, b) for a, b in zip(found, resident, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        *({"prefetch.predictor": n, "prefetch.depth": 1} for n in ("repeat_last", "next_gate")),
        {"precision.scheme": "gate_threshold", "precision.low_bits": 4},
        {"kv.bits": 8},
        {"cpu.threads": 1},
    ],
    ids=str,
)
def test_other_settings_give_the_same_bits_and_decisions(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("olmoe", tmp_path / "model")
    _, calls = both(monkeypatch, folder, tmp_path / "a", **{"precision.bits": 8, **values})
    # a policy that predicts or chooses bits is asked before each layer
    assert (calls > 0) == ("cpu.threads" in values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cache.expert_bytes": 3 * RECORD_BYTES},
        {"cache.expert_bytes": 12 * RECORD_BYTES, "precision.non_expert_bits": 4},
        {"cache.expert_bytes": 6 * RECORD_BYTES, "cache.scope": "shared"},
        {"prefetch.predictor": "next_gate", "prefetch.depth": 2},
        {"precision.scheme": "gate_threshold", "precision.low_bits": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("family", WITH_ROUTERS)
def test_several_micro_batches_decode_as_if_each_came_alone(
    family: str,
    apart: bool,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    values = {"precision.bits": 4, **values}
    given = {"batches": (2, 1, 2), "apart": apart}
    fronts: list[int] = []
    layers = Threads.layers
    monkeypatch.setattr(
        Threads, "layers", lambda self, all_: fronts.append(all_.tokens) or layers(self, all_)
    )
    both(monkeypatch, folder, tmp_path / "a", **given, **values)
    assert set(fronts[-len(TOKENS) :]) == {5}  # sequences of all micro-batches at once


def test_a_sequence_that_is_gone_frees_its_keys_and_values_at_once(tmp_path: Path) -> None:
    folder = save_tiny("olmoe", tmp_path / "model")
    engine = Engine(folder, CpuDevice(), tmp_path / "a")
    engine.configure(EngineConfig().overlay({"batch.count": 3, "kv.max_tokens": 80}))
    group = [MicroBatch(torch.arange(4, 16)[None]) for _ in range(3)]
    engine.prefill(group)
    for batch in group:
        batch.tokens = torch.tensor([[7]])
    engine.forward(group, "decode")
    kept = [weakref.ref(batch.kv) for batch in group]
    gc.disable()
    try:
        del batch, group
        assert [one() for one in kept] == [None] * 3
    finally:
        gc.enable()
        engine.close()


@pytest.mark.parametrize("family", WITH_OWN_BLOCKS)
def test_micro_batches_whose_blocks_are_their_own_come_one_after_another(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    both(monkeypatch, folder, tmp_path / "a", batches=(2, 1), apart=True)


@pytest.mark.parametrize("batches", [(2,), (1, 2)], ids=str)
@pytest.mark.parametrize("needs", [(), ("gate_input",), ("weights", "probabilities")], ids=str)
def test_recorders_hear_the_same(
    needs: tuple[Need, ...],
    batches: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save_tiny("olmoe", tmp_path / "model")
    heard = []
    for native in (True, False):
        with monkeypatch.context() as patch:
            if not native:
                patch.setattr(NativePass, "of", lambda model: None)
            listener = Listener(frozenset(needs))
            run(folder, tmp_path / "a", batches, recorder=listener)
            heard.append(listener.events)
    assert heard[0] == heard[1]
    assert len(heard[0]) > len(TOKENS) * COMMON["num_hidden_layers"]


def test_weights_of_another_model_between_passes(tmp_path: Path) -> None:
    """Precisions outside the experts change: weights move, and are found again."""
    folder = save_tiny("olmoe", tmp_path / "model")
    engine = Engine(folder, CpuDevice(), tmp_path / "a")
    found = []
    for bits in (16, 4, 16):
        engine.configure(EngineConfig().overlay({"precision.non_expert_bits": bits}))
        batch = MicroBatch(torch.arange(4, 16)[None])
        engine.prefill([batch])
        batch.tokens = torch.tensor([[7]])
        found.append(engine.forward([batch], "decode")[0])
    engine.close()
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
