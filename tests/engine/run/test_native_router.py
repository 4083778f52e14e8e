"""Routers in the native library: torch's choice, equal logits in their order, or torch itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.run.native_router import native_router_of, use_native_routers
from tests.requirements import require_native

require_native()


class Router(nn.Module):
    """logits -> the best `chosen` experts; form: what is done to the logits."""

    def __init__(
        self, form: str, dtype: torch.dtype, *, bias: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        weight = torch.randn(20, 64, generator=generator) * scale
        self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        own = nn.Parameter(torch.arange(20).to(dtype) / 8, requires_grad=False)
        self.bias = own if bias else None
        self.form = form

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = functional.linear(hidden, self.weight, self.bias)
        if self.form == "sigmoid":
            weights, index = logits.float().sigmoid().topk(4, dim=-1)
        elif self.form == "chosen":
            best, index = logits.topk(4, dim=-1)
            weights = best.softmax(dim=-1)
        else:
            weights, index = logits.float().softmax(dim=-1).topk(4, dim=-1)
            if self.form == "normalized":
                weights = weights / weights.sum(dim=-1, keepdim=True)
        return logits, weights.to(logits.dtype), index


def both(router: Router, tokens: int) -> tuple[Any, Any]:
    """What the router gives by itself and natively."""
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(9)).to(router.weight.dtype)
    expected = router(x)
    use_native_routers([router], 8)
    return expected, router(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", ["softmax", "normalized", "chosen"])
def test_usual_routers_choose_as_torch_does(form: str, bias: bool, dtype: torch.dtype) -> None:
    router = Router(form, dtype, bias=bias)
    expected, found = both(router, 7)
    assert native_router_of(router) is not None
    for a, b in zip(expected, found, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
    torch.testing.assert_close(found[0], expected[0], rtol=0.02, atol=0.05)
    # where rounding decides between two logits, either is right
    chosen = expected[0].float().gather(1, found[2])
    torch.testing.assert_close(
        chosen, expected[0].float().gather(1, expected[2]), rtol=0.02, atol=0.05
    )
    torch.testing.assert_close(found[1].float(), expected[1].float(), rtol=0.05, atol=1e-4)


def test_other_routers_stay_with_torch() -> None:
    router = Router("sigmoid", torch.bfloat16)
    expected, found = both(router, 3)
    assert native_router_of(router) is None
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_many_tokens_stay_with_torch() -> None:
    expected, found = both(Router("softmax", torch.bfloat16), 9)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_equal_logits_are_chosen_in_their_order() -> None:
    router = Router("softmax", torch.bfloat16)
    use_native_routers([router], 8)
    logits, weights, index = router(torch.zeros(2, 64, dtype=torch.bfloat16))
    assert index.tolist() == [[0, 1, 2, 3]] * 2
    assert torch.equal(logits, torch.zeros(2, 20, dtype=torch.bfloat16))
    assert weights.tolist() == [[0.050048828125] * 4] * 2  # 1/20 in bf16


def test_what_is_no_number_gives_no_number() -> None:
    router = Router("normalized", torch.bfloat16)
    use_native_routers([router], 8)
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    x[0, 0] = float("nan")
    _, weights, index = router(x)
    assert weights.isnan().all()
    assert sorted(set(index[0].tolist())) == index[0].tolist()


def test_a_moved_weight_leaves_it_to_torch() -> None:
    router = Router("softmax", torch.bfloat16)
    use_native_routers([router], 8)
    router.weight = nn.Parameter(router.weight.clone(), requires_grad=False)
    assert native_router_of(router) is None
