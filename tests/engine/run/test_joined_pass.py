"""Micro-batches of any lengths in one forward: on the CPU the bits, the decisions and the events of
each alone, but for latent attention; elsewhere the same up to rounding, with one wait a layer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine.config.settings import EngineConfig
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.registry import open_device
from engine.kv_cache.joined_kv import JoinedKv
from engine.model.joined_attention import StructureError
from engine.model.loader import load_model
from engine.native import library
from engine.policy.events import Need
from engine.run.engine import Engine
from engine.run.joined_pass import JoinedPass
from engine.run.micro_batch import MicroBatch
from engine.run.native_pass import NativePass
from engine.run.on_host import HostCopies
from tests.engine.families import EXTRA, each_family, save_tiny
from tests.fakes.checked_device import CheckedDevice
from tests.fakes.listener import Listener

LATENT = ("deepseek_v2", "deepseek_v3")  # keys and values of all sequences from one product
ROUNDED = 0.04  # bf16
NOT_JOINED = ("granitemoehybrid", "jamba", "minimax", "qwen3_next")  # recurrent states
TOKENS = (5, 9, 11, 3)
LENGTHS = (12, 7, 3)


def run(
    folder: Path,
    cache: Path,
    sizes: Sequence[int] = (1, 2, 1),
    recorder: Listener | None = None,
    device: Device | None = None,
    **values: Any,
) -> tuple[list[torch.Tensor], Any]:
    """Logits of prompts of different lengths and of tokens one by one, and what the policy
    counted."""
    engine = Engine(folder, device or CpuDevice(), cache)
    try:
        count = {"batch.size": max(sizes), "batch.count": len(sizes), "kv.max_tokens": 80}
        engine.configure(EngineConfig().overlay({**count, **values}))
        if recorder is not None:
            engine.record(recorder)
        group = [
            MicroBatch(torch.arange(4 + n, 4 + n + size * LENGTHS[n]).view(size, LENGTHS[n]))
            for n, size in enumerate(sizes)
        ]
        found = [logits for batch in group for logits in engine.prefill([batch])]
        for token in TOKENS:
            for batch in group:
                size = batch.tokens.shape[0]
                batch.tokens = torch.arange(token, token + size)[:, None]
            found += engine.forward(group, "decode")
        engine.residency.policy.cache.check_integrity()
        return [one.clone() for one in found], engine.residency.counters
    finally:
        engine.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Native passes of several micro-batches are off. The sizes of passes that were joined."""
    found: list[int] = []
    joined = JoinedPass._forward

    def note(self: JoinedPass, tokens: Sequence[torch.Tensor], caches: Sequence[Any]) -> Any:
        found.append(len(tokens))
        return joined(self, tokens, caches)

    monkeypatch.setattr(NativePass, "of", lambda model: None)
    monkeypatch.setattr(JoinedPass, "_forward", note)
    return found


def both(
    monkeypatch: pytest.MonkeyPatch, folder: Path, cache: Path, **values: Any
) -> list[list[torch.Tensor]]:
    """Logits, joined and one after another. Where they are the same, decisions are too."""
    found, counted = run(folder, cache, **values)
    with monkeypatch.context() as patch:
        patch.setattr(JoinedPass, "of", lambda model, exact: None)
        expected, counted_alone = run(folder, cache, **values)
    pair = [found, expected]
    assert counted == counted_alone or not same(pair)
    return pair


def same(pair: list[list[torch.Tensor]], tolerance: float = 0.0) -> bool:
    """tolerance: of the largest logit, for nine of ten logits: where it rounds, a token may go to
    other experts."""
    close = [
        torch.allclose(one, other, rtol=0, atol=tolerance * float(other.abs().max()))
        for one, other in zip(*pair, strict=True)
    ]
    return close.count(False) <= (len(close) // 10 if tolerance else 0)


@pytest.mark.parametrize("family", each_family())
def test_every_family_decodes_the_bits_of_each_alone(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    values = {"precision.bits": 8, "cache.expert_bytes": "50%"}
    rounds = ROUNDED if family in LATENT else 0.0
    assert same(both(monkeypatch, folder, tmp_path / "a", **values), rounds)
    joins = library.is_available() and family not in NOT_JOINED
    assert (calls.count(3) == len(TOKENS)) == joins, calls


@pytest.mark.parametrize("family", ["qwen2_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize(
    "values",
    [
        {"kv.bits": 8},
        {"kv.bits": 4},
        {"kv.keep_fraction": 0.5},
        {"precision.non_expert_bits": 4, "precision.bits": 4},
        {"prefetch.depth": 1, "prefetch.predictor": "next_gate"},
        {"batch.order": "ready_first", "cache.expert_bytes": "25%"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_other_settings_give_the_bits_of_each_alone(
    family: str,
    values: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    rounds = ROUNDED if family in LATENT else 0.0
    assert same(both(monkeypatch, folder, tmp_path / "a", **values), rounds)
    assert 3 in calls or not library.is_available()


@pytest.mark.parametrize("family", ["gpt_oss", "qwen2_moe"])
@pytest.mark.parametrize("needs", [(), ("gate_input",), ("weights", "probabilities")], ids=str)
def test_recorders_hear_the_same(
    family: str,
    needs: tuple[Need, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    heard = []
    for joins in (True, False):
        with monkeypatch.context() as patch:
            if not joins:
                patch.setattr(JoinedPass, "of", lambda model, exact: None)
            listener = Listener(frozenset(needs))
            run(folder, tmp_path / "a", recorder=listener)
            heard.append(listener.events)
    assert heard[0] == heard[1]
    assert len(heard[0]) > len(TOKENS) * 2 * 3


@pytest.mark.parametrize("placement", ["device", "host_below"])
@pytest.mark.parametrize("family", ["gpt_oss", "deepseek_v3"])
def test_a_device_with_memory_of_its_own_finds_no_race_and_gives_the_same_bits(
    family: str, placement: str, tmp_path: Path, calls: list[int]
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    values: dict[str, Any] = {"kernel.name": "dequantize", "precision.bits": 8}
    few = {"cache.expert_bytes": "30%", "host.bytes": "auto", "placement.name": placement}
    device = CheckedDevice()
    with device.watching():
        found, _ = run(folder, tmp_path / "a", device=device, **(values | few))
    device.synchronize()
    assert calls
    expected, _ = run(folder, tmp_path / "a", **values)
    assert same([found, expected])


@pytest.fixture
def on_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine takes its device for an accelerator: nothing is native, products may round."""
    monkeypatch.setattr(library, "is_available", lambda: False)
    monkeypatch.setattr(Engine, "_on_cpu", property(lambda self: False))


@pytest.mark.parametrize("family", sorted(set(EXTRA) - set(NOT_JOINED) - {"phimoe"}))
def test_on_an_accelerator_the_host_waits_once_a_layer_for_all(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_card: None, calls: list[int]
) -> None:
    folder, waits = save_tiny(family, tmp_path / "model"), []
    read = HostCopies.read

    def note(self: HostCopies, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        waits.append(len(tensors))
        return read(self, tensors)

    monkeypatch.setattr(HostCopies, "read", note)
    values = {"compute.dtype": "float32", "kernel.name": "dequantize"}
    pair = both(monkeypatch, folder, tmp_path / "a", **values)
    tried = [2, 2] if family in LATENT else [2]  # at opening; kept when loaded again
    assert calls == tried + [3] * len(TOKENS)
    layers = len(load_model(folder, torch.float32).layers)
    assert len(waits) == layers * (2 * 3 + len(TOKENS) * (1 + 3))
    assert same(pair, 1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_on_a_card(
    family: str,
    dtype: str,
    tolerance: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    calls: list[int],
) -> None:
    folder = save_tiny(family, tmp_path / "model")
    values: dict[str, Any] = {"compute.dtype": dtype, "kernel.name": "dequantize"}
    pair = []
    for joins in (True, False):
        device = open_device("auto")
        if device.torch_device.type == "cpu":
            pytest.skip("there is no accelerator")
        with monkeypatch.context() as patch:
            if not joins:
                patch.setattr(JoinedPass, "of", lambda model, exact: None)
            found, _ = run(folder, tmp_path / "a", device=device, **values)
        pair.append([one.float().cpu() for one in found])
    assert calls.count(3) == len(TOKENS)
    assert same(pair, tolerance)


def test_it_is_known_before_a_study_and_a_profile(tmp_path: Path, on_card: None) -> None:
    for family, joins in (("mixtral", True), ("jamba", False)):
        engine = Engine(save_tiny(family, tmp_path / family), CpuDevice(), tmp_path / "a")
        assert engine.passes.together == joins
        engine.close()


def pass_of(folder: Path, dtype: torch.dtype = torch.bfloat16) -> JoinedPass | None:
    return JoinedPass.of(load_model(folder, dtype), exact=False)


def attention_modules(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "layer_idx")]


def test_a_model_that_ignores_positions_is_not_joined(tmp_path: Path) -> None:
    model = load_model(save_tiny("mixtral", tmp_path), torch.bfloat16)
    base: Any = model.model.base_model
    rotate = base.rotary_emb.forward

    def by_order(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        first = position_ids[:1].expand(len(hidden), -1)  # of the first sequence, for all
        return rotate(hidden, first)

    assert JoinedPass.of(model, exact=False) is not None
    base.rotary_emb.forward = by_order
    assert JoinedPass.of(model, exact=False) is None


def test_a_model_whose_attention_is_its_own_is_not_joined(tmp_path: Path) -> None:
    model = load_model(save_tiny("mixtral", tmp_path), torch.bfloat16)
    for module in attention_modules(model.model):
        if hasattr(module, "q_proj"):
            own = module.forward

            def attend(hidden: Any, *rest: Any, _own: Any = own, **named: Any) -> Any:
                out, weights = _own(hidden, *rest, **named)
                return out + hidden.mean(dim=0, keepdim=True), weights  # of all sequences

            module.forward = attend
    assert JoinedPass.of(model, exact=False) is None


@pytest.mark.parametrize(
    "overrides",
    [
        {"layer_types": ["chunked_attention"] * 3},
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
    ],
    ids=["chunks", "dynamic angles"],
)
def test_what_depends_on_the_longest_sequence_is_not_joined(
    overrides: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_tiny("mixtral", tmp_path)
    assert pass_of(folder) is not None
    model = load_model(folder, torch.bfloat16)
    config: Any = model.model.config
    for name, value in overrides.items():
        setattr(config, name, value)
    if "rope_parameters" in overrides:
        base: Any = model.model.base_model
        base.rotary_emb.rope_type = "dynamic"
    assert JoinedPass.of(model, exact=False) is None


def test_angles_of_one_kind_of_layers_that_depend_on_the_longest_sequence(tmp_path: Path) -> None:
    usual = {"rope_type": "default", "rope_theta": 10000.0}
    varying = {**usual, "rope_type": "dynamic", "factor": 4.0}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    sizes: dict[str, Any] = {"num_experts": 8, "head_dim": 16, "sliding_window": 8}
    sizes["layer_types"] = kinds
    for full, joins in ((usual, True), (varying, False)):
        angles = {"full_attention": full, "sliding_attention": usual}
        folder = save_tiny("laguna", tmp_path / str(joins), **sizes, rope_parameters=angles)
        assert (pass_of(folder) is not None) == joins


@pytest.mark.parametrize("error", [AssertionError, ImportError, NotImplementedError])
def test_a_model_that_fails_in_the_trial_opens_all_the_same(
    error: type[Exception], tmp_path: Path
) -> None:
    model = load_model(save_tiny("mixtral", tmp_path), torch.bfloat16)

    def refuse(*given: Any, **named: Any) -> Any:
        raise error("needs another machine")

    model.model.base_model.norm.forward = refuse
    assert JoinedPass.of(model, exact=False) is None


@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (1,) * 8], ids=str)
def test_a_bias_of_each_expert_is_none_of_each_token(
    sizes: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    """As many tokens as experts; minimax_m2's routers are called with their bias."""
    folder = save_tiny("minimax_m2", tmp_path / "model", num_local_experts=8, head_dim=16)
    monkeypatch.setattr("tests.engine.run.test_joined_pass.LENGTHS", range(3, 11))
    values: dict[str, Any] = {"prefetch.depth": 1, "prefetch.predictor": "next_gate"}
    values["cache.expert_bytes"] = "50%"
    found, counted = run(folder, tmp_path / "a", sizes, **values)
    assert len(sizes) in calls or not library.is_available()
    with monkeypatch.context() as patch:
        patch.setattr(JoinedPass, "of", lambda model, exact: None)
        expected, counted_alone = run(folder, tmp_path / "a", sizes, **values)
    assert same([found, expected])
    assert counted == counted_alone


def test_more_tokens_than_native_products_take_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    folder = save_tiny("gpt_oss", tmp_path / "model")
    monkeypatch.setattr("tests.engine.run.test_joined_pass.LENGTHS", range(3, 23))
    for count in (8, 20):
        with monkeypatch.context() as patch:
            found, _ = run(folder, tmp_path / "a", (1,) * count)
            patch.setattr(JoinedPass, "of", lambda model, exact: None)
            expected, _ = run(folder, tmp_path / "a", (1,) * count)
        assert same([found, expected], 0.0 if count == 8 else ROUNDED)


def test_float32_is_joined_only_with_the_same_bits(tmp_path: Path) -> None:
    """Its products are torch's, whose bits depend on how many tokens there are."""
    model = load_model(save_tiny("mixtral", tmp_path), torch.float32)
    assert JoinedPass.of(model, exact=True) is None
    found = JoinedPass.of(model, exact=False)
    assert found is not None
    assert not found._packs


def test_one_token_is_not_multiplied_on_all_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def note(active: bool) -> AbstractContextManager[None]:
        asked.append(active)
        return nullcontext()

    monkeypatch.setattr("engine.run.engine.all_cores", note)
    for kernel in ("auto", "dequantize"):
        engine = Engine(save_tiny("mixtral", tmp_path / kernel), CpuDevice(), tmp_path / "a")
        engine.configure(EngineConfig().overlay({"kernel.name": kernel}))
        batch = MicroBatch(torch.arange(3, 43)[None])
        engine.prefill([batch])
        batch.tokens = torch.tensor([[5]])
        engine.forward([batch], "decode")
        engine.close()
    assert asked == [True, False] * 2


def test_attention_goes_back_to_what_it_was(tmp_path: Path) -> None:
    model = load_model(save_tiny("gpt_oss", tmp_path), torch.bfloat16)
    before = model.model.config._attn_implementation
    found = JoinedPass.of(model, exact=False)
    assert found is not None
    assert model.model.config._attn_implementation == before
    assert not any("_expertune_joined" in module.__dict__ for module in model.model.modules())
    with pytest.raises(RuntimeError, match="in between"), found._attention.joined(Nobody()):
        raise RuntimeError("in between")
    assert model.model.config._attn_implementation == before


class Nobody:
    sizes = (1, 1)

    def each(self, key: torch.Tensor, value: torch.Tensor) -> Any:
        raise AssertionError


def test_a_cache_that_is_not_asked_by_attention_is_found_out() -> None:
    states = torch.zeros(2, 1, 1, 4)
    joined = JoinedKv([Kept(), Kept()], [1, 1], packs=False)
    joined.update(states, states, 0)
    with pytest.raises(StructureError, match="does not use"):
        joined.update(states, states, 1)
    with pytest.raises(StructureError, match="changes what"):
        list(joined.each(states.clone(), states))
    with pytest.raises(StructureError, match="without new"):
        list(joined.each(states, states))


class Kept:
    """A cache without layers."""

    def __init__(self) -> None:
        self.layers: list[Any] = []
