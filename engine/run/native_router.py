"""Routers through the native library, for few tokens: a linear layer, softmax, the best experts.

Whether a router computes that is tried on random numbers, not read from its name.
Letters: T tokens, D hidden, E experts of a layer, K chosen ones.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from engine.experts.kernels.native import NUMBERS
from engine.native import library
from engine.native.values import NO_BIAS, Block, Format, Matrix, Number, Router, RouterForm

_FORMATS = {torch.bfloat16: Format.BF16, torch.float16: Format.FP16}
_TRIED_TOKENS = 32
_ROUNDING = 1 / 64  # of 16-bit logits and weights, and what sums in another order add to it
_LOGITS, _WEIGHTS, _INDEX = "logits", "weights", "index"


@dataclass(frozen=True)
class NativeRouter:
    """How to call one router natively; names, dtypes: of the tensors that the module returns."""

    values: Router
    address: int
    names: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]

    def buffers(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Room for logits [T, E], weights [T, K] and index [T, K] of x [T, D]."""
        tokens, chosen = x.shape[0], self.values.chosen
        weights = x.dtype if self.values.weights_number else torch.float32
        return (
            x.new_empty(tokens, self.values.block.matrix.rows),
            x.new_empty(tokens, chosen, dtype=weights),
            x.new_empty(tokens, chosen, dtype=torch.int64),
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What buffers depend on beside their tokens: E, K, and the type of weights."""
        values = self.values
        return values.block.matrix.rows, values.chosen, values.weights_number

    def output(
        self, logits: torch.Tensor, weights: torch.Tensor, index: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """What the module returns, from filled buffers."""
        found = {_LOGITS: logits, _WEIGHTS: weights, _INDEX: index}
        pairs = zip(self.names, self.dtypes, strict=True)
        return tuple(
            one if (one := found[name]).dtype == dtype else one.to(dtype) for name, dtype in pairs
        )

    def choose(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the module returns for x [T, D]."""
        x = x.contiguous()
        buffers = self.buffers(x)
        places = (buffer.data_ptr() for buffer in buffers)
        library.current().route(self.values, x.data_ptr(), NUMBERS[x.dtype], x.shape[0], *places)
        return self.output(*buffers)


def use_native_routers(routers: Iterable[Any], most_tokens: int) -> None:
    """Make routers that compute what the library does run natively, up to this many tokens."""
    for router in routers:
        found = None if router is None else _matching(router)
        if found is not None:
            object.__setattr__(router, "_native_router", found)
            object.__setattr__(router, "_most_native_tokens", most_tokens)
            object.__setattr__(router, "_whole_forward", router.forward)
            router.forward = types.MethodType(_forward, router)


def native_router_of(router: Any) -> NativeRouter | None:
    """How this router is called natively; None if it is not, or its weight has moved since."""
    found: NativeRouter | None = None if router is None else router.__dict__.get("_native_router")
    if found is None or found.address != router.weight.data_ptr():
        return None
    return found


def _forward(self: Any, *arguments: Any, **keywords: Any) -> Any:
    """As the module's own forward."""
    native = native_router_of(self)
    if native is None or len(arguments) != 1 or keywords:
        return self._whole_forward(*arguments, **keywords)
    x = arguments[0].reshape(-1, arguments[0].shape[-1])  # [T, D]
    if x.shape[0] > self._most_native_tokens or x.dtype != self.weight.dtype:
        return self._whole_forward(*arguments)
    return native.choose(x)


def _matching(router: Any) -> NativeRouter | None:
    """The native call whose results are this router's on random numbers; None: there is none."""
    weight, bias = getattr(router, "weight", None), getattr(router, "bias", None)
    if not isinstance(weight, torch.Tensor) or weight.dtype not in _FORMATS:
        return None
    if weight.dim() != 2 or not weight.is_contiguous() or weight.device.type != "cpu":
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIED_TOKENS, weight.shape[1], generator=generator).to(weight.dtype)
    try:
        with torch.inference_mode():
            output = router(x)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return None
    names = _names(output, weight.shape[0])
    if names is None or not (bias is None or isinstance(bias, torch.Tensor)):
        return None
    matrix = Matrix(
        _FORMATS[weight.dtype], weight.shape[0], weight.shape[1], 0, 0, 0, 0, 0, NO_BIAS
    )
    if bias is not None:
        if bias.dtype not in NUMBERS or bias.shape != weight.shape[:1]:
            return None
        matrix.bias_offset = bias.data_ptr() - weight.data_ptr()
        matrix.bias_number = NUMBERS[bias.dtype]
    returned = dict(zip(names, output, strict=True))
    logits, weights, index = (returned[name] for name in (_LOGITS, _WEIGHTS, _INDEX))
    plain = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if not torch.allclose(
        logits.float(), plain, rtol=_ROUNDING, atol=_ROUNDING * float(plain.std())
    ):
        return None
    number = NUMBERS[x.dtype] if weights.dtype == x.dtype else Number.FLOAT32
    for form, normalized in itertools.product(RouterForm, (0, 1)):
        ours, best = _chosen(logits, form, normalized, index.shape[1])
        near = torch.allclose(ours.to(weights.dtype), weights, rtol=_ROUNDING, atol=0)
        # equal logits may be chosen in any order
        if near and torch.equal(logits.gather(1, best), logits.gather(1, index)):
            block = Block(matrix, weight.data_ptr())
            values = Router(block, form, index.shape[1], normalized, number)
            dtypes = tuple(tensor.dtype for tensor in output)
            return NativeRouter(values, weight.data_ptr(), names, dtypes)
    return None


def _names(output: Any, experts: int) -> tuple[str, ...] | None:
    """What the tensors of a router's output are: logits [T, E], weights and index [T, K]."""
    if not isinstance(output, tuple) or len(output) != 3:
        return None
    if not all(isinstance(one, torch.Tensor) and one.dim() == 2 for one in output):
        return None
    names = tuple(
        (_LOGITS if one.shape[1] == experts else _WEIGHTS) if one.is_floating_point() else _INDEX
        for one in output
    )
    return names if sorted(names) == sorted((_LOGITS, _WEIGHTS, _INDEX)) else None


def _chosen(
    logits: torch.Tensor, form: RouterForm, normalized: int, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the library makes of logits [T, E]: weights and index [T, K]."""
    if form == RouterForm.SOFTMAX:
        weights, index = logits.float().softmax(dim=-1).topk(count, dim=-1)
    else:
        best, index = logits.topk(count, dim=-1)
        weights = best.float().softmax(dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True) if normalized else weights, index
