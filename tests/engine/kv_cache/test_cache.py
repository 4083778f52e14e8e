"""The kv_cache in a running engine: fewer bits lose a little and no more, placement no bit."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.errors import ConfigError
from engine.evaluate.divergence import diverge
from engine.kv_cache.cache import StoredLayer
from engine.layout.kv import BLOCK_TOKENS, WINDOW_TOKENS
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import VOCABULARY, each_family, save_tiny
from tests.fakes.staged_device import StagedDevice

PROMPT_TOKENS = 150
NEW_TOKENS = 40
BASE = {
    "compute.dtype": "float32",
    "cache.expert_bytes": "50%",
    "prefill.chunk_tokens": 48,
    "kv.max_tokens": 200,
}
OWN_CACHE = {"minimax"}


def prompts(count: int, size: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, VOCABULARY, (size, PROMPT_TOKENS), generator=generator)
        for _ in range(count)
    ]


def forced_logits(engine: Engine, count: int = 1, size: int = 1, **settings: Any) -> torch.Tensor:
    """Logits of the last prompt token and of NEW_TOKENS given ones, [count * B, 1 + n, V]."""
    engine.configure(EngineConfig().overlay({**BASE, "batch.count": count, **settings}))
    batches = [MicroBatch(prompt) for prompt in prompts(count, size)]
    steps = [torch.cat(engine.prefill(batches))]
    for number in range(NEW_TOKENS):
        for batch in batches:
            batch.tokens = torch.full((size, 1), 5 + 3 * number % 100)
        steps.append(torch.cat(engine.forward(batches, "decode")))
    return torch.cat(steps, dim=1).clone()


def greedy(engine: Engine, prompt: torch.Tensor, **settings: Any) -> list[int]:
    engine.configure(EngineConfig().overlay({**BASE, **settings}))
    batch = MicroBatch(prompt)
    logits = engine.prefill([batch])[0]
    found = []
    for _ in range(NEW_TOKENS):
        found.append(int(logits[0, -1].argmax()))
        batch.tokens = torch.tensor([[found[-1]]])
        logits = engine.forward([batch], "decode")[0]
    return found


def loss(own: torch.Tensor, exact: torch.Tensor) -> float:
    """Mean difference of logits over their spread."""
    return float((own - exact).abs().mean() / exact.std())


@pytest.mark.parametrize(("count", "size"), [(1, 1), (3, 2)])
def test_eight_bits_stay_close_and_four_lose_more(engine: Engine, count: int, size: int) -> None:
    exact = forced_logits(engine, count, size)
    eight = loss(forced_logits(engine, count, size, **{"kv.bits": 8}), exact)
    four = loss(forced_logits(engine, count, size, **{"kv.bits": 4}), exact)
    assert 0 < eight < 0.01
    assert 3 * eight < four < 0.2


def test_greedy_tokens_at_eight_bits_are_those_of_sixteen(engine: Engine) -> None:
    prompt = prompts(1)[0]
    exact = greedy(engine, prompt)
    assert greedy(engine, prompt, **{"kv.bits": 8}) == exact
    assert len(set(exact)) > 1


def test_tokens_within_the_window_lose_nothing(engine: Engine) -> None:
    tokens = torch.arange(3, 3 + WINDOW_TOKENS + BLOCK_TOKENS - 1)[None]
    rows = []
    for bits in (16, 4):
        engine.configure(EngineConfig().overlay({**BASE, "kv.bits": bits}))
        rows.append(engine.prefill([MicroBatch(tokens, keep=0)])[0].clone())
    assert torch.equal(rows[0], rows[1])


def test_the_kv_cache_takes_what_the_memory_equation_says(engine: Engine) -> None:
    taken = {}
    for bits in (16, 8, 4):
        _, plan = engine.configure(EngineConfig().overlay({**BASE, "kv.bits": bits}))
        batch = MicroBatch(prompts(1)[0])
        engine.prefill([batch])
        held = [
            tensor
            for layer in batch.kv.layers
            for tensor in (
                layer.keys,
                layer.values,
                layer._rows.read() if isinstance(layer, StoredLayer) else None,
            )
            if tensor is not None
        ]
        taken[bits] = sum(t.untyped_storage().nbytes() for t in held)
        assert taken[bits] <= plan.kv_bytes
    assert taken[4] < taken[8] < taken[16]


def test_divergence_in_decode_mode_shows_what_bits_lose(engine: Engine, tmp_path: Path) -> None:
    tokens = [(7 * number) % 280 + 3 for number in range(PROMPT_TOKENS)]
    engine.configure(EngineConfig().overlay(BASE))
    diverge(engine, tokens, tmp_path, "decode", reference=True)
    found = {}
    for bits in (16, 8, 4):
        engine.configure(EngineConfig().overlay({**BASE, "kv.bits": bits}))
        divergence = diverge(engine, tokens, tmp_path, "decode", reference=False)
        assert divergence is not None
        found[bits] = divergence.kld_mean
    assert abs(found[16]) < 1e-7
    assert found[16] < found[8] < found[4]


@pytest.fixture(scope="module", params=each_family(OWN_CACHE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(request.param, tmp_path_factory.mktemp(request.param))


def test_placement_on_the_host_changes_no_bit_in_any_family(folder: Path) -> None:
    outcomes = []
    for place in ("device", "host"):
        device = StagedDevice()
        engine = Engine(folder, device, folder / "cache")
        outcomes.append(forced_logits(engine, 2, **{"kv.placement": place}))
        link = engine.live.kv.link
        assert (link is None) == (place == "device")
        if link is not None:
            assert link.moved_bytes > 0
            assert link.peak_host_bytes > 0
        engine.close()
    assert torch.equal(*outcomes)


def test_every_family_keeps_its_greedy_tokens_at_eight_bits(folder: Path) -> None:
    engine = Engine(folder, CpuDevice(), folder / "cache")
    exact = forced_logits(engine)
    eight = forced_logits(engine, **{"kv.bits": 8})
    assert 0 < loss(eight, exact) < 0.02
    notes = engine.live.notes
    whole = engine.facts.kv_plain_layers == engine.facts.layers
    assert any("kv.bits = 8" in note for note in notes) == (not whole)
    engine.close()


def test_bits_and_placement_go_together(tiny_folder: Path, tmp_path: Path) -> None:
    outcomes = []
    for device, place in ((CpuDevice(), "device"), (StagedDevice(), "host")):
        engine = Engine(tiny_folder, device, tmp_path)
        outcomes.append(forced_logits(engine, 2, **{"kv.bits": 4, "kv.placement": place}))
        engine.close()
    assert torch.equal(*outcomes)


def test_the_next_layer_comes_while_the_present_one_computes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    engine = Engine(tiny_folder, StagedDevice(), tmp_path)
    engine.configure(EngineConfig().overlay({**BASE, "kv.placement": "host"}))
    batch = MicroBatch(prompts(1)[0])
    engine.prefill([batch])
    layers = batch.kv.layers
    seen = []
    for number, layer in enumerate(layers):
        update = layer.update

        def watched(*args: Any, update: Any = update, number: int = number, **named: Any) -> Any:
            before = [other._rows._fetch is not None for other in layers]
            found = update(*args, **named)
            after = [other._rows._fetch is not None for other in layers]
            seen.append((number, before, after))
            return found

        layer.update = watched
    batch.tokens = torch.tensor([[5]])
    engine.forward([batch], "decode")
    none = [False, False, False]
    assert seen == [
        (0, none, [False, True, False]),
        (1, [False, True, False], [False, False, True]),
        (2, [False, False, True], none),
    ]
    engine.close()


def test_on_a_device_that_is_host_memory_placement_is_inactive_and_said_so(engine: Engine) -> None:
    engine.configure(EngineConfig().overlay({**BASE, "kv.placement": "host"}))
    assert any(note.startswith("kv.placement = host: inactive") for note in engine.live.inactive)
    batch = MicroBatch(prompts(1)[0])
    engine.prefill([batch])
    assert not any(isinstance(layer, StoredLayer) for layer in batch.kv.layers)


@pytest.mark.parametrize("family", sorted(OWN_CACHE))
def test_a_family_with_a_cache_of_its_own_is_refused_by_name(family: str, tmp_path: Path) -> None:
    device: Device = StagedDevice()
    engine = Engine(save_tiny(family, tmp_path / "model"), device, tmp_path / "cache")
    with pytest.raises(ConfigError, match=f"kv.bits = 8 does not suit '{family}'.*set kv.bits"):
        engine.configure(EngineConfig().overlay({**BASE, "kv.bits": 8}))
    engine.configure(EngineConfig().overlay({**BASE, "kv.placement": "host"}))
    assert any("no layer of this model" in note for note in engine.live.inactive)
    engine.prefill([MicroBatch(prompts(1)[0])])
    engine.close()


def test_finished_sequences_leave_nothing_on_the_host(tiny_folder: Path, tmp_path: Path) -> None:
    engine = Engine(tiny_folder, StagedDevice(), tmp_path)
    forced_logits(engine, **{"kv.placement": "host"})
    gc.collect()
    assert engine.live.kv.link is not None
    assert not list(engine.live.kv.link._held)
    engine.close()


@pytest.mark.gpu
def test_an_accelerator_agrees_with_transformers_own_offloading_cache(
    tiny_folder: Path, tmp_path: Path
) -> None:
    from transformers.cache_utils import DynamicCache

    from engine.device.accelerator import AcceleratorDevice

    current = torch.accelerator.current_accelerator()
    assert current is not None, "this test needs an accelerator"
    engine = Engine(tiny_folder, AcceleratorDevice(str(current)), tmp_path)
    resident = forced_logits(engine, 2)
    moved = forced_logits(engine, 2, **{"kv.placement": "host"})
    engine.configure(EngineConfig().overlay({**BASE, "batch.count": 2}))
    batches = [
        MicroBatch(p, kv=DynamicCache(config=engine.model.model.config, offloading=True))
        for p in prompts(2)
    ]
    oracle = torch.cat(engine.prefill(batches))
    assert torch.equal(moved, resident)
    assert torch.equal(moved[:, :1], oracle)
    engine.close()
