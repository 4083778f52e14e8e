"""Records: round trips, error bounds, kernels against the dequantized reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.experts.encoding.codec import RecordFormat, can_unpack, encode, matrix_view, vector_view
from engine.experts.encoding.quantization import dequantize, quantize
from engine.experts.kernels.gemm import padded_length
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.layout.record import Part, record_layout, resolve_group_size, supported_bits

shapes = st.tuples(
    st.sampled_from([16, 48, 64, 80, 128]), st.sampled_from([16, 32, 48, 64, 96, 160, 2880])
)
LAYOUTS: list[Any] = ["plain"]
if torch.backends.cpu.get_cpu_capability() in ("AVX512", "AVX2"):
    LAYOUTS.append("torch_int4")


def make_record(
    parts: tuple[Part, ...], bits: Any, code_layout: Any, group: int = 64
) -> RecordFormat:
    layout = record_layout(parts, bits, resolve_group_size(parts, group))
    return RecordFormat(parts, layout, torch.bfloat16, code_layout)


@given(shape=shapes, bits=st.sampled_from([8, 4, 3, 2]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_quantization_errs_by_at_most_half_a_step(
    shape: tuple[int, int], bits: Any, seed: int
) -> None:
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    group = resolve_group_size((Part("w", shape),), 32)
    quantized = quantize(weight, bits, group)
    error = (dequantize(quantized, bits, group) - weight).abs()
    if bits == 8:
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        rounding = weight.abs().amax(dim=1, keepdim=True) * 2**-8
    else:
        grouped = weight.view(shape[0], -1, group)
        low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
        step = (high - low) / ((1 << bits) - 1)
        # scale and zero are kept in bf16: half an ulp of each, times the farthest code
        rounding = (8 * step.abs() * 2 + torch.maximum(low.abs(), high.abs())) * 2**-8
        error = error.view_as(grouped)
    assert (error <= step / 2 + rounding + 1e-6).all()


@pytest.mark.parametrize("code_layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
@given(shape=shapes, bits=st.sampled_from([16, 8, 4, 3, 2]), tokens=st.sampled_from([1, 3, 130]))
@settings(max_examples=40, deadline=None)
def test_products_agree_with_the_dequantized_reference(
    code_layout: Any, transposed: bool, shape: tuple[int, int], bits: Any, tokens: int
) -> None:
    rows, columns = shape
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randn(rows, columns, generator=generator).to(torch.bfloat16)
    stored = weight.t().contiguous() if transposed else weight
    part = Part("w", tuple(stored.shape), transposed)
    if bits not in supported_bits((part,)):
        return
    record = make_record((part,), bits, code_layout)
    group = record.layout.group_size
    if code_layout == "torch_int4" and bits in (4, 3, 2) and group < 32:
        return
    view = matrix_view(encode({"w": stored}, record), record, part)
    expected_weight = weight.float()
    if bits != 16:
        expected_weight = dequantize(quantize(weight, bits, group), bits, group)
    x = torch.randn(tokens, columns, generator=generator).to(torch.bfloat16)
    expected = x.float() @ expected_weight.t()
    for name in ("auto", "dequantize") if can_unpack(rows, code_layout) else ("auto",):
        held = ("torch_int4", *(("torch_int8",) if columns % 16 == 0 else ()))
        multiply = Multiplier(bits, group, code_layout, KernelSupport(held), name)
        error = (multiply(x, view).float() - expected).abs().max() / expected.abs().max()
        assert error < 0.02


@pytest.mark.parametrize("code_layout", LAYOUTS)
@pytest.mark.parametrize("transposed", [False, True])
@given(shape=shapes, bits=st.sampled_from([8, 4, 3, 2]), group=st.sampled_from([16, 32, 64, 128]))
@settings(max_examples=60, deadline=None)
def test_a_record_gives_back_the_codes_scales_and_biases_it_was_made_of(
    code_layout: Any, transposed: bool, shape: tuple[int, int], bits: Any, group: int
) -> None:
    rows, columns = shape
    if code_layout == "torch_int4" and rows % 64:
        rows = 64
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))
    bias = torch.arange(rows).to(torch.bfloat16)
    stored = weight.t().contiguous() if transposed else weight
    parts = (Part("w", tuple(stored.shape), transposed), Part("w_bias", (rows,)))
    record = make_record(parts, bits, code_layout, group)
    group = record.layout.group_size
    assert 0 < group <= 128
    assert columns % group == 0
    data = encode({"w": stored, "w_bias": bias}, record)
    assert data.numel() == record.size_bytes
    multiply = Multiplier(bits, group, code_layout, NO_KERNELS, "dequantize")
    found = multiply.dequantized(matrix_view(data, record, parts[0]))
    assert torch.equal(found, dequantize(quantize(weight, bits, group), bits, group))
    assert torch.equal(vector_view(data, record, parts[1]), bias)


@given(rows=st.sampled_from([1, 2, 16, 64]), columns=st.sampled_from([16, 48, 2880]))
def test_3_and_2_bits_take_no_more_than_their_bits(rows: int, columns: int) -> None:
    part = Part("w", (rows, columns))
    for bits in (3, 2):
        field = make_record((part,), bits, "plain").layout.field("w")
        assert field.size_bytes * 8 == rows * columns * bits


def test_biases_and_matrices_keep_their_bits_at_16() -> None:
    parts = (Part("gate_up_proj", (64, 192), transposed=True), Part("gate_up_proj_bias", (192,)))
    record = make_record(parts, 16, "plain")
    tensors = {p.name: torch.randn(p.shape).to(torch.bfloat16) for p in parts}
    data = encode(tensors, record)
    assert torch.equal(matrix_view(data, record, parts[0]).codes, tensors["gate_up_proj"])
    assert torch.equal(vector_view(data, record, parts[1]), tensors["gate_up_proj_bias"])


@given(shape=shapes, bits=st.sampled_from([16, 8, 4, 3, 2]))
def test_fields_are_aligned_and_do_not_overlap(shape: tuple[int, int], bits: Any) -> None:
    parts = (Part("a", shape), Part("b", (shape[0],)), Part("c", shape[::-1]))
    if bits not in supported_bits(parts):
        return
    layout = make_record(parts, bits, "plain").layout
    end = 0
    for field in layout.fields:
        assert field.offset % 64 == 0
        assert field.offset >= end
        end = field.offset + field.size_bytes
    assert layout.size_bytes % 4096 == 0
    assert layout.size_bytes >= end


def test_shapes_without_a_group_keep_16_and_8_bits() -> None:
    assert supported_bits((Part("w", (40, 40)),)) == (16, 8)
    assert resolve_group_size((Part("w", (64, 2880)),), 128) == 64


@given(st.integers(1, 5000))
def test_padding_is_at_most_a_half_and_gives_few_lengths(tokens: int) -> None:
    padded = padded_length(tokens)
    assert tokens <= padded <= max(tokens + 1, tokens * 3 // 2)
    assert padded_length(padded) == padded
