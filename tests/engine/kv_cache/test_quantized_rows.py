"""Keys and values as rows of bytes: plain ones come back as they were, quantized ones within half a
step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache.quantized_rows import KvFormat, PlainFormat, QuantizedFormat, value_group
from engine.layout.kv import BLOCK_TOKENS, packed_ratio
from engine.types import KvBits

DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])


def states(
    seed: int, dtype: torch.dtype, batch: int, heads: int, tokens: int, width: int
) -> torch.Tensor:
    """[B, H, S, D] as attention makes them: transposed, with channels that are always large."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(batch, tokens, heads, width, generator=generator)
    made += 20 * torch.randn(width, generator=generator)
    return made.to(dtype).transpose(1, 2)


def round_trip(
    layout: KvFormat, keys: torch.Tensor, values: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows = layout.encode(keys, values)
    out = torch.empty_like(keys), torch.empty_like(values)
    layout.decode(rows, *out)
    return rows, *out


@given(st.integers(0, 10**6), DTYPES, st.integers(1, 3), st.integers(1, 3), st.integers(1, 9))
def test_plain_rows_give_the_same_bits_back(
    seed: int, dtype: torch.dtype, batch: int, heads: int, tokens: int
) -> None:
    keys = states(seed, dtype, batch, heads, tokens, 24)
    values = states(seed + 1, dtype, batch, 1, tokens, 8)
    rows, own_keys, own_values = round_trip(PlainFormat(), keys, values)
    assert rows.shape == (tokens, batch * (heads * 24 + 8) * keys.element_size())
    assert torch.equal(own_keys, keys)
    assert torch.equal(own_values, values)


@pytest.mark.parametrize("bits", [8, 4])
@given(
    seed=st.integers(0, 10**6),
    dtype=DTYPES,
    batch=st.integers(1, 2),
    blocks=st.sampled_from([1, 2, 17]),
    key_width=st.sampled_from([8, 16, 64, 80]),
    value_width=st.sampled_from([8, 16, 40, 128]),
)
def test_quantized_rows_come_back_within_half_a_step_of_their_group(
    bits: KvBits,
    seed: int,
    dtype: torch.dtype,
    batch: int,
    blocks: int,
    key_width: int,
    value_width: int,
) -> None:
    tokens = blocks * BLOCK_TOKENS
    keys = states(seed, dtype, batch, 2, tokens, key_width)
    values = states(seed + 1, dtype, batch, 1, tokens, value_width)
    _, own_keys, own_values = round_trip(QuantizedFormat(bits), keys, values)
    group = value_group(value_width)
    for own, exact, shape, dim in (
        (own_keys, keys, (batch, 2, blocks, BLOCK_TOKENS, key_width), 3),
        (own_values, values, (batch, 1, tokens, value_width // group, group), 4),
    ):
        grouped = exact.float().reshape(shape)
        step = (grouped.amax(dim, keepdim=True) - grouped.amin(dim, keepdim=True)) / (2**bits - 1)
        rounding = 2 * torch.finfo(dtype).eps * grouped.abs().amax(dim, keepdim=True)
        error = (own.float().reshape(shape) - grouped).abs()
        assert (error <= 0.51 * step + rounding).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [16, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rows_are_no_larger_than_the_memory_equation_says(
    bits: KvBits, width: int, dtype: torch.dtype
) -> None:
    keys = values = states(0, dtype, 2, 2, 2 * BLOCK_TOKENS, width)
    rows = QuantizedFormat(bits).encode(keys, values)
    exact = 2 * keys.numel() * keys.element_size()
    assert rows.numel() <= exact * packed_ratio(bits, keys.element_size())
    assert rows.numel() > 0.8 * exact * packed_ratio(bits, keys.element_size())


def test_constant_groups_come_back_exactly() -> None:
    keys = values = torch.full((1, 2, BLOCK_TOKENS, 16), 3.0, dtype=torch.bfloat16)
    _, own_keys, own_values = round_trip(QuantizedFormat(4), keys, values)
    assert torch.equal(own_keys, keys)
    assert torch.equal(own_values, values)
