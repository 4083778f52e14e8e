"""Activations rounded to 8 bits, as the native library rounds them (native/sources/rounding.h).

A value becomes q * 2^e, with a whole number q of at most 127 and one e for a group of columns: that
of the codes that they are multiplied by. Every such value is a bf16 number, so that any product can
take it; where a processor multiplies bytes, the native products do, and give the same bits.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from engine.experts.kernels.native import NUMBERS
from engine.native import library

ROW_GROUP = 64
"""Columns that share an exponent where the codes have one scale a row."""

_LEAST = 2.0**-60  # a group without a larger value becomes zero
_MOST = 127.5 / 128  # a fraction of a power of two from which on 127 is exceeded


def rounded_activations(x: torch.Tensor, group: int) -> torch.Tensor:
    """x [T, K], rounded in groups of this many columns, in x's dtype [T, K]. A group with a value
    that is infinite or no number becomes none."""
    if x.device.type != "cpu" or x.dtype not in NUMBERS or not library.is_available():
        return rounded_by_torch(x, group)
    x = x.contiguous()
    out = torch.empty_like(x)
    tokens, columns = x.shape
    where = x.data_ptr(), tokens, columns, group, out.data_ptr()
    library.current().round(NUMBERS[x.dtype], *where)
    return out


def rounded_by_torch(x: torch.Tensor, group: int) -> torch.Tensor:
    """As rounded_activations, on any device: the oracle."""
    columns = x.shape[1]
    whole = functional.pad(x.float(), (0, -columns % group)).view(len(x), -1, group)  # [T, G, g]
    most = whole.abs().amax(dim=2, keepdim=True)  # [T, G, 1]
    fraction, exponent = torch.frexp(most)
    exponent = exponent + (fraction >= _MOST).to(exponent.dtype) - 7
    one = torch.ones_like(most)
    inverse = torch.ldexp(one, -exponent).masked_fill_(most < _LEAST, 0.0)
    inverse.masked_fill_(~most.isfinite(), torch.nan)
    rounded = (whole * inverse).round_().mul_(torch.ldexp(one, exponent))
    return rounded.flatten(1)[:, :columns].to(x.dtype).contiguous()  # [T, K]
