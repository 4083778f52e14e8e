"""Activations of 8 bits: what they are rounded to, and that products of bytes give the bits of
other products with what was rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.experts.encoding.codec import RecordFormat, encode, matrix_view
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.native import GROUPS, linear, matrix_of
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.experts.kernels.rounding import ROW_GROUP, rounded_activations, rounded_by_torch
from engine.layout.record import Part, record_layout
from engine.memory.plan import complete
from engine.native.library import is_available
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.run.native_step import has_native_step

NATIVE = KernelSupport(("native",))
WITH_NATIVE: Any = pytest.mark.skipif(not is_available(), reason="there is no native library")


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def encoded(bits: Any, group: int, rows: int, columns: int) -> tuple[RecordFormat, torch.Tensor]:
    part = Part("w", (rows, columns))
    record = RecordFormat((part,), record_layout((part,), bits, group), torch.bfloat16, "plain")
    return record, encode({"w": noise(1, rows, columns).bfloat16()}, record)


@WITH_NATIVE
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    group=st.sampled_from((*GROUPS, ROW_GROUP, 300)),
    columns=st.integers(1, 300),
    tokens=st.integers(1, 40),
    scale=st.integers(-80, 120),
    seed=st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_the_library_rounds_to_the_same_bits(
    dtype: torch.dtype, group: int, columns: int, tokens: int, scale: int, seed: int
) -> None:
    x = (noise(seed, tokens, columns) * 2.0**scale).to(dtype)
    x[seed % tokens, seed % columns] = (0.0, -0.0, torch.inf, torch.nan, 1.0)[seed % 5]
    for given_x in (x, x.repeat(1, 2)[:, :columns]):  # rows that lie apart
        expected, found = rounded_by_torch(given_x, group), rounded_activations(given_x, group)
        assert found.is_contiguous()
        assert found.dtype == dtype
        assert torch.equal(expected.isnan(), found.isnan())
        assert torch.equal(expected.nan_to_num(), found.nan_to_num())


@given(
    group=st.sampled_from(GROUPS),
    columns=st.integers(1, 300),
    scale=st.integers(-50, 50),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_values_are_whole_numbers_of_a_power_of_two(
    group: int, columns: int, scale: int, seed: int
) -> None:
    x = noise(seed, 3, columns) * 2.0**scale
    found = rounded_activations(x, group)
    assert torch.equal(found, found.bfloat16().float())  # nothing is lost in bf16
    assert torch.equal(rounded_activations(found, group), found)
    for start in range(0, columns, group):
        own, asked = found[:, start : start + group], x[:, start : start + group]
        most = asked.abs().amax(dim=1, keepdim=True)
        step = 2.0 ** (most.log2().floor() - 6)
        coarser = torch.where(most / step >= 127.5, 2 * step, step)
        assert torch.equal((own / coarser).round(), own / coarser)
        assert ((own / coarser).abs() <= 127).all()
        assert ((own - asked).abs() <= coarser / 2).all()


def test_groups_without_numbers_and_without_values() -> None:
    x = torch.zeros(4, 64)
    x[1, 3], x[2, 3], x[3, 3] = torch.inf, torch.nan, 2.0**-61
    found = rounded_activations(x, 32)
    assert found[1:3, :32].isnan().all()
    assert not found[:, 32:].any()
    assert not found[[0, 3]].any()
    assert rounded_activations(torch.full((1, 16), 127.5), 16).unique().item() == 128
    assert rounded_activations(torch.full((1, 16), 127.49), 16).unique().item() == 127


@WITH_NATIVE
@given(
    bits=st.sampled_from([8, 4, 3, 2]),
    group=st.sampled_from(GROUPS),
    groups=st.integers(1, 5),
    rows=st.sampled_from([8, 17, 130]),
    tokens=st.sampled_from([1, 2, 3, 5, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_products_of_bytes_are_products_with_what_was_rounded(
    bits: Any, group: int, groups: int, rows: int, tokens: int, dtype: torch.dtype, seed: int
) -> None:
    record, data = encoded(bits, group, rows, group * groups)
    view = matrix_view(data, record, record.parts[0])
    x = noise(seed, tokens, group * groups).to(dtype)
    rounded = rounded_activations(x, ROW_GROUP if bits == 8 else group)
    found = linear(x, view, matrix_of(view, bits, group, 8))
    assert torch.equal(found, linear(rounded, view, matrix_of(view, bits, group, 8)))
    plain = linear(rounded, view, matrix_of(view, bits, group))
    if bits != 8:
        assert torch.equal(found, plain)
    weight = Multiplier(bits, group, "plain", NATIVE, "auto").dequantized(view)
    expected = rounded.double() @ weight.double().t()
    bound = 1e-5 if dtype == torch.float32 else 8e-3 if dtype == torch.bfloat16 else 1e-3
    assert (found.double() - expected).abs().max() / expected.abs().max() < bound


@pytest.mark.parametrize("support", [pytest.param(NATIVE, marks=WITH_NATIVE), NO_KERNELS])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_every_product_rounds_what_meets_codes(bits: Any, support: KernelSupport) -> None:
    record, data = encoded(bits, 64, 48, 128)
    view = matrix_view(data, record, record.parts[0])
    x = noise(2, 40, 128).bfloat16()
    rounded = x if bits == 16 else rounded_activations(x, 64)
    assert bits == 16 or not torch.equal(x, rounded)
    for crossover in (4, 64):
        multiply = Multiplier(bits, 64, "plain", support, "auto", crossover, activation_bits=8)
        plain = Multiplier(bits, 64, "plain", support, "auto", crossover)
        found, expected = multiply(x, view), plain(rounded, view)
        assert torch.allclose(found.float(), expected.float(), rtol=2e-2, atol=2e-2)
        assert (found == expected).float().mean() > 0.9


def test_a_config_that_has_no_codes_rounds_nothing(engine: Engine) -> None:
    rounding = EngineConfig().overlay({"precision.activation_bits": 8})
    assert complete(rounding, engine.facts).precision.activation_bits == 16
    assert lossy_settings(rounding) == lossy_settings(EngineConfig())
    coded = rounding.overlay({"precision.bits": 4})
    assert complete(coded, engine.facts).precision.activation_bits == 8
    assert lossy_settings(coded)["precision.activation_bits"] == 8
    plain = coded.overlay({"precision.activation_bits": 16})
    assert "precision.activation_bits" not in lossy_settings(plain)  # former results stay valid


@pytest.mark.parametrize("bits", [8, 4])
def test_an_engine_computes_the_same_however_its_experts_are_reached(
    engine: Engine, bits: int
) -> None:
    def logits(**values: Any) -> torch.Tensor:
        base = {"precision.bits": bits, "precision.non_expert_bits": bits, "kv.max_tokens": 64}
        engine.configure(EngineConfig().overlay({**base, **values}))
        batch = MicroBatch(torch.arange(3, 15).view(2, 6))
        found = engine.prefill([batch])
        for token in (5, 9):
            batch.tokens = torch.tensor([[token], [token + 1]])
            found += engine.forward([batch], "decode")
        return torch.cat(found, dim=1).float()

    rounded = logits(**{"precision.activation_bits": 8})
    small = {"precision.activation_bits": 8, "cache.expert_bytes": "30%", "io.threads": 1}
    assert torch.equal(rounded, logits(**small))
    plain = logits()
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).abs().max() < 0.1 * plain.abs().max()
    # and one token at a time passes natively where it does without rounding
    if is_available():
        logits(**{"precision.activation_bits": 8})
        layers = engine.model.model.base_model.layers
        assert all(has_native_step(layer.self_attn) for layer in layers)
