"""Quantizing in the native library: one result everywhere, and as good as torch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.experts.encoding.codec import unpack_plain
from engine.experts.encoding.native import quantize_into
from engine.experts.encoding.quantization import Quantized, quantize
from engine.experts.encoding.scale_search import objective
from engine.native.library import Library, Threads, load

shapes = st.tuples(st.sampled_from([1, 3, 16, 33, 80]), st.sampled_from([64, 128, 192, 704]))
sizes = st.sampled_from([0.0, 1e-30, 1e-6, 0.02, 1.0, 1e4, 1e30])


@pytest.fixture(scope="module")
def library() -> Library:
    found = load()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="module")
def pool(library: Library) -> Any:
    opened = Threads(library, 2)
    yield opened
    opened.close()


def quantized(pool: Threads, weight: torch.Tensor, bits: Any, group: int, how: Any) -> Quantized:
    """codes: uint8 [N, K * bits / 8]; scales: bf16 [N, G, 2] or [N]."""
    rows, columns = weight.shape
    groups = columns // group
    codes = torch.full((rows, columns * bits // 8), 0xA5, dtype=torch.uint8)
    scales = torch.full((rows,) if bits == 8 else (rows, groups, 2), -7.0, dtype=torch.bfloat16)
    quantize_into(pool, weight, bits, group, how, codes, scales.view(torch.uint8))
    return Quantized(codes, scales)


def assert_as_torch(pool: Threads, weight: torch.Tensor, bits: Any, group: int) -> None:
    found = quantized(pool, weight, bits, group, "none")
    wanted = quantize(weight, bits, group)
    codes = found.codes.view(torch.int8) if bits == 8 else unpack_plain(found.codes, bits)
    assert torch.equal(codes, wanted.codes)
    scales = wanted.scales if bits == 8 else wanted.scales.permute(1, 0, 2)  # [N, G, 2]
    assert torch.equal(found.scales, scales)


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_codes_are_dense_along_the_columns_the_first_lowest(pool: Threads, bits: Any) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(bits))
    packed = quantized(pool, weight, bits, 32, "none").codes
    wanted = quantize(weight, bits, 32).codes
    for row in range(5):
        whole = int.from_bytes(packed[row].numpy().tobytes(), "little")
        assert [whole >> bits * k & (1 << bits) - 1 for k in range(64)] == wanted[row].tolist()
    assert torch.equal(unpack_plain(packed, bits), wanted)


@given(
    shape=shapes,
    bits=st.sampled_from([8, 4, 3, 2]),
    group=st.sampled_from([8, 16, 32, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    stored=st.sampled_from(["rows", "columns", "part of a row", "every other"]),
    size=sizes,
    shift=st.sampled_from([0.0, 3.0]),
    how=st.sampled_from(["none", "weighted_squares"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_instruction_set_and_thread_count_gives_the_same_bytes(
    library: Library,
    shape: tuple[int, int],
    bits: Any,
    group: int,
    dtype: torch.dtype,
    stored: str,
    size: float,
    shift: float,
    how: Any,
    seed: int,
) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size + shift
    weight[0, :group] = 0.0
    weight[-1, :group] = -0.0
    weight = weight.clamp(-60_000, 60_000).to(dtype) if dtype == torch.float16 else weight.to(dtype)
    if stored == "columns":
        weight = weight.t().contiguous().t()
    elif stored == "part of a row":
        weight = torch.cat((weight, weight), 1)[:, 5 : 5 + shape[1]]
    elif stored == "every other":
        weight = torch.cat((weight, weight), 1)[:, ::2]
    names = library.instruction_sets()
    pools = [Threads(library, threads, name) for name in names for threads in (1, 3)]
    try:
        results = [quantized(pool, weight, bits, group, how) for pool in pools]
    finally:
        for pool in pools:
            pool.close()
    for found in results[:-1]:
        assert torch.equal(found.codes, results[-1].codes)
        bytes_of = found.scales.view(torch.int16)
        assert torch.equal(bytes_of, results[-1].scales.view(torch.int16))


@given(
    shape=shapes,
    bits=st.sampled_from([8, 4, 3, 2]),
    group=st.sampled_from([8, 32, 64]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
    size=sizes,
    transposed=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_rounding_to_nearest_gives_torch_s_codes_and_scales(
    pool: Threads,
    shape: tuple[int, int],
    bits: Any,
    group: int,
    dtype: torch.dtype,
    size: float,
    transposed: bool,
    seed: int,
) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size
    weight = weight.clamp(-60_000, 60_000).to(dtype) if dtype == torch.float16 else weight.to(dtype)
    assert_as_torch(pool, weight.t().contiguous().t() if transposed else weight, bits, group)


@pytest.mark.parametrize("columns", [1, 5, 24, 100])
def test_rows_of_8_bits_may_have_any_length(pool: Threads, columns: int) -> None:
    weight = torch.randn(19, columns, generator=torch.Generator().manual_seed(columns))
    assert_as_torch(pool, weight, 8, 64)


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("tail", [0.0, 0.3])
def test_the_search_finds_what_torch_s_finds(
    pool: Threads, bits: Any, group: int, tail: float
) -> None:
    generator = torch.Generator().manual_seed(bits + group)
    weight = torch.randn(512, 1024, generator=generator)
    weight = (weight * torch.rand(weight.shape, generator=generator) ** -tail).to(torch.bfloat16)
    found = quantized(pool, weight, bits, group, "weighted_squares")
    wanted = quantize(weight, bits, group, "weighted_squares")
    scales = wanted.scales.permute(1, 0, 2)  # [N, G, 2]
    differing = (unpack_plain(found.codes, bits) != wanted.codes).view(512, -1, group).any(-1)
    differing |= (found.scales != scales).any(-1)
    assert differing.float().mean() < 0.002

    grouped = weight.float().view(512, -1, group)
    own, torchs = (
        objective(grouped, *both.unbind(-1), (1 << bits) - 1).double()
        for both in (found.scales, scales)
    )
    assert math.isclose(own.sum(), torchs.sum(), rel_tol=1e-4)
    plain = quantized(pool, weight, bits, group, "none").scales
    start = objective(grouped, *plain.unbind(-1), (1 << bits) - 1)
    assert (own <= start * (1 + 1e-5)).all()


@pytest.mark.parametrize("value", [0.0, -2.0, 0.37, 1e-30, 1e30])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_a_constant_group_stays_what_it_is(pool: Threads, value: float, bits: Any) -> None:
    weight = torch.full((2, 64), value)
    found = quantized(pool, weight, bits, 64, "weighted_squares")
    scale, zero = found.scales.float().unbind(-1)  # [N, G]
    values = (unpack_plain(found.codes, bits).float() - 8) * scale + zero
    assert (values - weight).abs().max() <= max(abs(value) * 2**-8, 1e-11)
