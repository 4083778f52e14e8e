"""Products with plain weights, in the precision that the processor multiplies fast.

Letters: T tokens, N output rows, K input columns.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

from engine.native.library import physical_cores

_WIDENED_NUMBERS = 1 << 19  # elements of a weight at a time: 2 MiB in float32


def gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K] @ weight [K, N] -> [T, N] in x's dtype. weight: of x's dtype, or float32.

    In reduced precision on the CPU, T is padded to few distinct sizes: oneDNN compiles and keeps a
    kernel of about 0.4 MB for every new T (0.3 ms each, measured), which would fill the budget when
    prompts of many lengths pass; float32 uses another library. A processor without products in that
    precision multiplies in float32.
    """
    if x.dtype == torch.float32 or x.device.type != "cpu":
        return x @ weight.to(x.dtype)  # [T, N]
    tokens = x.shape[0]
    if not multiplies(x.dtype):
        return x @ weight.to(x.dtype) if tokens == 1 else widened_gemm(x, weight)  # [T, N]
    weight = weight.to(x.dtype)
    if tokens == 1:
        with single_token_products():
            return x @ weight  # [1, N]
    x = functional.pad(x, (0, 0, 0, padded_length(tokens) - tokens))  # [T', K]
    with single_token_products(active=False):
        return (x @ weight)[:tokens]  # [T, N]


def widened_gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K] @ weight [K, N], multiplied in float32, a few columns at a time -> [T, N].

    Without bf16 instructions torch multiplies reduced precision element by element: 32 tokens by
    256 x 128 took 616 us in bf16, 90 us with the weight widened first (AVX2, one thread).
    """
    wide = x.float()
    step = max(1, _WIDENED_NUMBERS // weight.shape[0])
    if weight.dtype == torch.float32 or weight.shape[1] <= step:
        return (wide @ weight.float()).to(x.dtype)  # [T, N]
    out = torch.empty(x.shape[0], weight.shape[1], dtype=x.dtype)
    for start in range(0, weight.shape[1], step):
        out[:, start : start + step] = wide @ weight[:, start : start + step].float()
    return out  # [T, N]


@functools.cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for products in this reduced precision."""
    name = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())


class WidenedLinear(nn.Linear):
    """A linear layer that multiplies in float32, for processors without reduced-precision
    products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [.., K] -> [.., N]."""
        flat = x.reshape(-1, self.in_features)  # [T, K]
        if flat.shape[0] == 1:
            return super().forward(x)
        out = widened_gemm(flat, self.weight.t())  # [T, N]
        if self.bias is not None:
            out = out + self.bias
        return out.view(*x.shape[:-1], self.out_features)


def widen_linears(model: nn.Module) -> None:
    """Make a model's plain linear layers in reduced precision multiply in float32 if the
    processor needs it. Their weights stay unchanged."""
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype in (torch.bfloat16, torch.float16):
            if multiplies(module.weight.dtype):
                return
            module.__class__ = WidenedLinear


@contextlib.contextmanager
def single_token_products(active: bool = True) -> Iterator[None]:
    """Inside the block, products run without oneDNN if `active`, with it otherwise.

    For one bf16 row torch's own matrix-vector product is 1.6x faster than oneDNN's (1024 x 1024:
    107 against 182 us, measured interleaved) and compiles nothing; from 2 rows on it is slower.
    """
    set_flags: Callable[..., tuple[object, ...]] = torch.backends.mkldnn.set_flags
    former = set_flags(_enabled=not active)
    try:
        yield
    finally:
        set_flags(*former)


@contextlib.contextmanager
def all_cores(active: bool = True) -> Iterator[None]:
    """Inside the block torch multiplies on every physical core if `active`, else as before.

    For long products only: between short ones its threads sleep (docs/adr/0002), and waking them
    takes longer than they save. The number does not depend on cpu.threads: float32 products differ
    in their last bits from one number of threads to another.
    """
    former = torch.get_num_threads()
    cores = physical_cores() if active else former
    if cores == former:
        yield
        return
    torch.set_num_threads(cores)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def padded_length(tokens: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `tokens`."""
    power = 1 << (tokens - 1).bit_length()
    return power * 3 // 4 if tokens <= power * 3 // 4 else power
