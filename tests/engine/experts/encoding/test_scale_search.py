"""Fitted scales and zeros: never worse in their own objective, and deterministic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.experts.encoding.quantization import Quantized, dequantize, quantize
from engine.experts.encoding.scale_search import objective

shapes = st.tuples(st.sampled_from([1, 16, 80]), st.sampled_from([64, 128, 2880]))


def cost_of(weight: torch.Tensor, quantized: Quantized, bits: int, group: int) -> torch.Tensor:
    scale, zero = quantized.scales.permute(1, 0, 2).unbind(-1)
    grouped = weight.view(weight.shape[0], -1, group)
    return objective(grouped, scale, zero, (1 << bits) - 1)


@given(
    shape=shapes,
    bits=st.sampled_from([4, 3, 2]),
    group=st.sampled_from([32, 64]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-6, 0.02, 1.0, 1e4]),
    shift=st.sampled_from([0.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_no_group_is_worse_than_round_to_nearest(
    shape: tuple[int, int], bits: Any, group: int, seed: int, size: float, shift: float
) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size + shift
    plain = quantize(weight, bits, group)
    fitted = quantize(weight, bits, group, "weighted_squares")
    assert torch.isfinite(dequantize(fitted, bits, group)).all()
    assert int(fitted.codes.max()) < 1 << bits
    before, after = cost_of(weight, plain, bits, group), cost_of(weight, fitted, bits, group)
    assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_normal_weights_come_out_clearly_better_and_the_same_each_time(bits: Any) -> None:
    weight = torch.randn(600, 512, generator=torch.Generator().manual_seed(0))
    plain = quantize(weight, bits, 64)
    fitted = quantize(weight, bits, 64, "weighted_squares")
    again = quantize(weight, bits, 64, "weighted_squares")
    assert torch.equal(fitted.codes, again.codes)
    assert torch.equal(fitted.scales, again.scales)
    ratio = cost_of(weight, fitted, bits, 64).sum() / cost_of(weight, plain, bits, 64).sum()
    assert ratio < 0.95


@pytest.mark.parametrize("value", [0.0, -2.0, 0.37])
def test_a_constant_group_stays_what_it_is(value: float) -> None:
    weight = torch.full((2, 64), value)
    found = dequantize(quantize(weight, 2, 64, "weighted_squares"), 2, 64)
    assert (found - weight).abs().max() <= abs(value) * 2**-8
