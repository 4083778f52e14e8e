"""What a kv_cache holds is found without weights, and is what the memory equation reserves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.memory.kv import kv_bytes, kv_growing_bytes, kv_growth_bytes
from engine.memory.plan import resolve
from engine.model.facts import describe
from engine.model.kv_shape import KvLayer, kv_layers
from engine.model.loader import load_model
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import COMMON, EXTRA, each_family, save_tiny

PLAIN = KvLayer(64, plain=True)  # two heads of 16, keys and values
WINDOW = KvLayer(64, window=8)
STATE = KvLayer(state_elements=1536)
TOKENS = 48


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("mixtral", [PLAIN] * 3),
        ("deepseek_v3", [KvLayer(24, plain=True)] * 3),  # latent of 16, rotated part of 8
        ("gpt_oss", [WINDOW, PLAIN, WINDOW]),
        ("jamba", [STATE, PLAIN, STATE]),
        ("minimax", []),  # a cache of its own
    ],
)
def test_what_layers_hold(family: str, layers: list[KvLayer], tmp_path: Path) -> None:
    model = load_model(save_tiny(family, tmp_path), torch.bfloat16, weights=False)
    assert list(model.kv_layers) == layers
    assert all(parameter.is_meta for parameter in model.model.parameters())
    assert not any("forward" in layer.experts.__dict__ for layer in model.layers)


def held_bytes(cache: Any) -> int:
    """Of all tensors of a cache, with what they are views of."""
    held: dict[int, int] = {}

    def note(value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            storage = value.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            list(map(note, value.values()))
        elif isinstance(value, (list, tuple)):
            list(map(note, value))

    for layer in cache.layers:
        note(list(vars(layer).values()))
        note([getattr(layer, name, None) for name in ("keys", "values")])
    return sum(held.values())


@pytest.mark.parametrize("family", each_family(without=("minimax",)))
@pytest.mark.parametrize("sequences", [1, 3])
def test_the_equation_reserves_what_is_held_at_most(
    family: str, sequences: int, tmp_path: Path
) -> None:
    engine = Engine(save_tiny(family, tmp_path), CpuDevice(), tmp_path / "a")
    config = {"kv.max_tokens": TOKENS, "prefill.chunk_tokens": 16, "batch.size": sequences}
    engine.configure(EngineConfig().overlay(config))
    batch = MicroBatch(torch.arange(3, 3 + sequences * (TOKENS - 8)).view(sequences, -1) % 128)
    engine.prefill([batch])
    most = held_bytes(batch.kv)
    for token in range(8):
        batch.tokens = torch.full((sequences, 1), 5 + token)
        engine.forward([batch], "decode")
        most = max(most, held_bytes(batch.kv))
    assert engine.memory is not None
    reserved = engine.memory.kv_bytes
    engine.close()
    assert most <= reserved
    # windows hold less than a chunk after the last one; convolutions' states have 16 bits
    assert most >= 0.6 * reserved


def test_latent_attention_reserves_what_is_compressed_and_room_to_expand_it(
    tmp_path: Path,
) -> None:
    facts = describe(load_model(save_tiny("deepseek_v3", tmp_path), torch.bfloat16), "m", "local")
    config, _ = resolve(EngineConfig().overlay({"kv.max_tokens": 1000}), facts)
    layers, heads = COMMON["num_hidden_layers"], COMMON["num_attention_heads"]
    assert kv_bytes(config, facts) == 1000 * layers * (16 + 8) * 2
    assert kv_growth_bytes(config, facts) == 2 * 1000 * heads * (16 + 16) * 2


def test_only_what_grows_with_tokens_is_lent_to_experts(tmp_path: Path) -> None:
    facts = describe(load_model(save_tiny("gpt_oss", tmp_path), torch.bfloat16), "m", "local")
    settings = {"kv.max_tokens": 1000, "kv.elastic": True, "prefill.chunk_tokens": 16}
    config, _ = resolve(EngineConfig().overlay(settings), facts)
    assert kv_growing_bytes(config, facts) == 1000 * 64 * 2
    assert kv_bytes(config, facts) == (1000 + 2 * (8 + 16)) * 64 * 2


def test_windows_beside_states_hold_a_whole_prompt(tmp_path: Path) -> None:
    facts = describe(load_model(save_tiny("gpt_oss", tmp_path), torch.bfloat16), "m", "local")
    facts = replace(facts, kv_state_bytes=100)
    settings = {"kv.max_tokens": 1000, "prefill.chunk_tokens": 16}
    config, _ = resolve(EngineConfig().overlay(settings), facts)
    assert kv_bytes(config, facts) == 3 * 1000 * 64 * 2 + 100


def test_an_index_of_keys_is_counted_with_them(tmp_path: Path) -> None:
    sizes = {**EXTRA["deepseek_v3"], "index_topk": 8, "index_n_heads": 2, "index_head_dim": 16}
    folder = save_tiny("deepseek_v32", tmp_path, **sizes)
    model = load_model(folder, torch.bfloat16, weights=False)
    assert {layer.token_elements for layer in model.kv_layers} == {16 + 8 + 16}


def test_a_model_that_runs_only_with_numbers_is_unknown(tmp_path: Path) -> None:
    model = load_model(save_tiny("mixtral", tmp_path), torch.bfloat16, weights=False)

    def look(hidden: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        return hidden if float(hidden.sum()) else hidden + 1

    model.model.base_model.norm.forward = look
    assert kv_layers(model.model, [layer.experts for layer in model.layers]) == ()
