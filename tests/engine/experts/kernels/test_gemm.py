"""Plain products: the same values whether or not the processor multiplies in reduced precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.experts.kernels import gemm as module
from engine.experts.kernels.gemm import WidenedLinear, gemm, widen_linears


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prequantized", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 7, 33])
def test_a_product_errs_by_no_more_than_its_rounding(
    dtype: torch.dtype, prequantized: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "multiplies", lambda dtype: prequantized)
    monkeypatch.setattr(module, "_WIDENED_NUMBERS", 1000)  # several steps
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 64, generator=generator).to(dtype)
    weight = torch.randn(96, 64, generator=generator).to(dtype)
    expected = x.float() @ weight.float().t()
    for stored in (weight.t(), weight.t().contiguous(), weight.float().t()):
        found = gemm(x, stored)
        assert found.dtype == dtype
        assert (found.float() - expected).abs().max() <= expected.abs().max() * 2**-7


def test_linears_of_a_model_are_widened_only_where_the_processor_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 8, bias=False)).to(torch.bfloat16)
    x = torch.randn(2, 5, 32).to(torch.bfloat16)
    expected = model(x)
    monkeypatch.setattr(module, "multiplies", lambda dtype: True)
    widen_linears(model)
    assert type(model[0]) is nn.Linear
    monkeypatch.setattr(module, "multiplies", lambda dtype: False)
    widen_linears(model)
    assert [type(part) for part in model] == [WidenedLinear, WidenedLinear]
    assert (model(x) - expected).abs().max() <= expected.abs().max() * 2**-6
    assert torch.equal(model(x[:1, :1]), expected[:1, :1])
    whole = nn.Linear(4, 4)
    widen_linears(whole)
    assert type(whole) is nn.Linear
