"""The device programs of `experts`: gate and up with the activation, down, the sum.

Letters: T rows of a tile, P = tokens x chosen experts, N output rows of a matrix, K its columns,
E experts, F expert width.

A row is one (token, choice) pair; its place is its number in routing order, 0 to P. An expert is
addressed by the byte offset of its record in the arena; -1: it is not computed by this launch.

Importing this module imports triton, which is an extra; engine.experts.kernels.grouped.launch does
so only when it launches.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _rounded(value: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    return value.to(dtype).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _rows_of_tile(
    index: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    pairs: tl.tensor,
    entries: tl.tensor,
    is_sorted: tl.constexpr,
    places: tl.constexpr,
    tile_rows: tl.constexpr,
) -> tl.tensor:
    """The rows of this program's tile: its expert (`entries`: none), places [T], which are real.

    is_sorted: the tiles are numbered expert by expert, whose places are order[starts[e]] to
    order[starts[e + 1]]. Otherwise there is a program for each pair, which searches `index` for the
    pairs of its expert; of `tile_rows` such pairs the first one's program computes all.
    """
    tile = tl.program_id(0)
    member = tl.arange(0, tile_rows)  # [T]
    if is_sorted:
        entry = tl.arange(0, places)  # [E]
        known = entry < entries
        first = tl.load(starts + entry, mask=known, other=0)
        end = tl.load(starts + entry + 1, mask=known, other=0)
        tiles = (end - first + tile_rows - 1) // tile_rows
        expert = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
        earlier = tl.sum(tl.where(entry < expert, tiles, 0), 0)
        is_tile = expert < entries  # the grid covers the most tiles that may be needed
        row = tl.load(starts + expert, mask=is_tile, other=0) + (tile - earlier) * tile_rows
        row += member
        real = row < tl.load(starts + expert + 1, mask=is_tile, other=0)
        place = tl.load(order + row, mask=real, other=0)
    else:
        pair = tl.arange(0, places)  # [P]
        chosen = tl.load(index + tile)
        same = tl.load(index + pair, mask=pair < pairs, other=-1) == chosen
        earlier = tl.sum((same & (pair < tile)).to(tl.int32), 0)
        rank = tl.cumsum(same.to(tl.int32), 0) - 1 - earlier  # [P]
        own = same[None, :] & (rank[None, :] == member[:, None])  # [T, P]
        real = tl.sum(own.to(tl.int32), 1) > 0
        place = tl.sum(tl.where(own, pair[None, :], 0), 1).to(tl.int64)
        expert = tl.where(earlier % tile_rows == 0, chosen, entries)
    return expert, place, real


@triton.jit  # type: ignore[untyped-decorator]
def _weights(
    codes: tl.tensor,
    first: tl.tensor,
    row_real: tl.tensor,
    columns: tl.tensor,
    column_stride: tl.tensor,
    kind: tl.constexpr,
    step: tl.constexpr,
) -> tl.tensor:
    """`step` columns of some rows [N, step] without their scales: the values of 16 bits, the codes
    of 8, code - 8 of 4, 3 and 2, twice the value of mxfp4. codes: pointers to the rows [N, 1]."""
    column = first + tl.arange(0, step)
    if kind == "int4" or kind == "mxfp4":
        pair = first // 2 + tl.arange(0, step // 2)
        packed = tl.load(codes + pair[None, :], mask=row_real[:, None], other=0)
        code = tl.interleave(packed & 0x0F, packed >> 4).to(tl.int8)  # [N, step]
        if kind == "int4":
            value = code - 8
        else:  # e2m1: sign, two bits of exponent, one of mantissa
            exponent = (code >> 1) & 3
            normal = (2 + (code & 1)) << (tl.maximum(exponent, 1) - 1)
            value = tl.where(exponent == 0, code & 1, normal)
            value = tl.where(code > 7, -value, value)
    elif kind == "int3" or kind == "int2":
        bits: tl.constexpr = 3 if kind == "int3" else 2
        bit = column * bits
        word = tl.load(codes + (bit // 8)[None, :], mask=row_real[:, None], other=0).to(tl.int32)
        if bits == 3:  # the only ones that cross from one byte into the next
            crossing = row_real[:, None] & (bit % 8 > 5)[None, :]
            after = tl.load(codes + (bit // 8 + 1)[None, :], mask=crossing, other=0)
            word = word | (after.to(tl.int32) << 8)
        value = ((word >> (bit % 8)[None, :]) & ((1 << bits) - 1)) - 8
    else:
        inside = row_real[:, None] & (column < columns)[None, :]
        value = tl.load(codes + (column * column_stride)[None, :], mask=inside, other=0)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _half_power(code: tl.tensor) -> tl.tensor:
    """2 ** (code - 128), half of what a scale's code (e8m0) stands for."""
    code = code.to(tl.int32)
    bits = tl.where(code == 0, 0x00400000, code << 23)  # 2 ** -127 has no exponent of its own
    return bits.to(tl.float32, bitcast=True) * 0.5


@triton.jit  # type: ignore[untyped-decorator]
def _products(
    x: tl.tensor,
    real: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    biases: tl.tensor,
    row: tl.tensor,
    row_real: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    scale_stride: tl.tensor,
    dtype: tl.constexpr,
    kind: tl.constexpr,
    group: tl.constexpr,
    step: tl.constexpr,
    has_bias: tl.constexpr,
    widen: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
) -> tl.tensor:
    """x times some rows of a matrix, with their bias, rounded to dtype: float32 [T, N].

    x: pointers to the rows [T, 1]; codes, scales, biases: to the matrix of the expert; step divides
    the group, so that one step has one scale a row; widen: multiply in float32.
    """
    has_zeros: tl.constexpr = kind == "int4" or kind == "int3" or kind == "int2"
    codes += row[:, None] * row_stride  # [N, 1]
    scales += row * scale_stride  # [N]
    column = tl.arange(0, step)
    total = tl.zeros((tile_rows, tile_outputs), tl.float32)
    for first in range(0, columns, step):
        inside = real[:, None] & (first + column < columns)[None, :]
        values = tl.load(x + (first + column)[None, :], mask=inside, other=0)  # [T, step]
        if widen:
            values = values.to(tl.float32)
        weights = _weights(codes, first, row_real, columns, column_stride, kind, step)
        weights = tl.trans(weights.to(values.dtype))  # [step, N]
        if has_zeros:
            # Codes are exact in every dtype; scale and zero are applied in float32, once a step.
            part = tl.dot(values, weights, input_precision="ieee")
            place = scales + first // group * 2
            scale = tl.load(place, mask=row_real, other=0).to(tl.float32)
            zero = tl.load(place + 1, mask=row_real, other=0).to(tl.float32)
            sums = tl.sum(values.to(tl.float32), 1)
            total += part * scale[None, :] + sums[:, None] * zero[None, :]
        elif kind == "mxfp4":
            part = tl.dot(values, weights, input_precision="ieee")
            scale = tl.load(scales + first // group, mask=row_real, other=0)
            total += part * _half_power(scale)[None, :]
        else:
            total = tl.dot(values, weights, total, input_precision="ieee")
    if kind == "int8":
        total *= tl.load(scales, mask=row_real, other=0).to(tl.float32)[None, :]
    total = _rounded(total, dtype)
    if has_bias:
        bias = tl.load(biases + row, mask=row_real, other=0).to(tl.float32)
        total = _rounded(total + _rounded(bias, dtype)[None, :], dtype)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _activated(x: tl.tensor, kind: tl.constexpr, dtype: tl.constexpr) -> tl.tensor:
    """The numbers are those of engine.native.values.Activation."""
    if kind == 0:
        value = x / (1 + tl.exp(-x))
    elif kind == 1:
        value = x * 0.5 * (1 + tl.erf(x * 0.7071067811865476))
    elif kind == 2:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        value = 0.5 * x * (2 - 2 / (tl.exp(2 * inner) + 1))
    elif kind == 3:
        value = tl.maximum(x, 0)
    elif kind == 4:
        value = tl.maximum(x, 0) * tl.maximum(x, 0)
    else:
        tl.static_assert(kind == 5)
        value = x * _rounded(1 / (1 + tl.exp(-_rounded(1.702 * x, dtype))), dtype)
    return value


@triton.jit  # type: ignore[untyped-decorator]
def _gated(
    g: tl.tensor,
    u: tl.tensor,
    form: tl.constexpr,
    activation: tl.constexpr,
    alpha: tl.constexpr,
    limit: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """The gate of g and u, float32 [T, N], rounded to dtype after each operation. The numbers of
    forms are those of engine.native.values.GateForm."""
    if form == 0:
        value = _activated(u, activation, dtype)
    elif form == 1:
        value = _rounded(_activated(g, activation, dtype), dtype) * u
    elif form == 5:
        value = _activated(g, activation, tl.float32) * u
    else:
        u = tl.minimum(tl.maximum(u, -limit), limit)
        if form == 4:
            value = tl.minimum(_rounded(_activated(g, activation, dtype), dtype), limit) * u
        else:
            g = tl.minimum(g, limit)
            if form == 2:
                value = _rounded(_activated(g, activation, dtype), dtype) * u
            else:
                tl.static_assert(form == 3)
                glu = _rounded(1 / (1 + tl.exp(-_rounded(g * alpha, dtype))), dtype)
                value = _rounded(u + 1, dtype) * _rounded(g * glu, dtype)
    return _rounded(value, dtype)


@triton.jit(do_not_specialize=["pairs", "chosen", "entries"])  # type: ignore[untyped-decorator]
def matrix_program(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    biases: tl.tensor,
    index: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    offsets: tl.tensor,
    out: tl.tensor,
    pairs: tl.tensor,
    chosen: tl.tensor,
    entries: tl.tensor,
    width: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    scale_stride: tl.tensor,
    codes_at: tl.tensor,
    scales_at: tl.tensor,
    bias_at: tl.tensor,
    kind: tl.constexpr,
    group: tl.constexpr,
    has_bias: tl.constexpr,
    form: tl.constexpr,
    activation: tl.constexpr,
    interleaved: tl.constexpr,
    alpha: tl.constexpr,
    limit: tl.constexpr,
    is_sorted: tl.constexpr,
    places: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    step: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Program (tile of rows, tile of outputs) of one matrix of every expert, to out [P, width].

    form: how gate and up, two halves of the matrix, are joined; 0: the activation of the one
    product; -1: the product itself. A row reads row (place // chosen) of x and writes row `place`.
    codes, scales, biases: the arena as numbers of their sizes; *_at: where in a record they begin;
    strides: in such numbers. index: int64 [P]; order, starts, places: see _rows_of_tile; offsets:
    int64 [entries].
    """
    expert, place, real = _rows_of_tile(
        index, order, starts, pairs, entries, is_sorted, places, tile_rows
    )
    start = tl.load(offsets + expert, mask=expert < entries, other=-1)
    if start < 0:
        return
    code_bytes: tl.constexpr = codes.dtype.element_ty.primitive_bitwidth // 8
    scale_bytes: tl.constexpr = scales.dtype.element_ty.primitive_bitwidth // 8
    codes += tl.multiple_of(start // code_bytes, 32) + codes_at
    scales += tl.multiple_of(start // scale_bytes, 32) + scales_at
    biases += tl.multiple_of(start // 2, 32) + bias_at
    x += (place // chosen)[:, None] * columns  # [T, 1]
    output = tl.program_id(1) * tile_outputs + tl.arange(0, tile_outputs)  # [N]
    row_real = output < width
    output = output.to(tl.int64)
    dtype: tl.constexpr = out.dtype.element_ty
    row = output
    if form > 0:
        gate_row = output * 2 if interleaved else output
        row = output * 2 + 1 if interleaved else output + width
    value = _products(
        x, real, codes, scales, biases, row, row_real, columns, row_stride, column_stride,
        scale_stride, dtype, kind, group, step, has_bias, widen, tile_rows, tile_outputs,
    )  # fmt: skip
    if form == 0:
        value = _gated(value, value, form, activation, alpha, limit, dtype)
    elif form > 0:
        gate = _products(
            x, real, codes, scales, biases, gate_row, row_real, columns, row_stride, column_stride,
            scale_stride, dtype, kind, group, step, has_bias, widen, tile_rows, tile_outputs,
        )  # fmt: skip
        value = _gated(gate, value, form, activation, alpha, limit, dtype)
    target = out + place[:, None] * width + output[None, :]
    tl.store(target, value.to(dtype), mask=real[:, None] & row_real[None, :])


@triton.jit(do_not_specialize=["chosen"])  # type: ignore[untyped-decorator]
def combine_program(
    y: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    chosen: tl.tensor,
    columns: tl.tensor,
    tile_columns: tl.constexpr,
) -> None:
    """Program (token, tile of D): the sum of a token's weighted outputs in routing order.

    y [P, D] and out [tokens, D] of one dtype; weights [P]. Launched without contraction to fused
    multiply-adds, so that each product is rounded.
    """
    dtype: tl.constexpr = out.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    inside = column < columns
    total = tl.zeros((tile_columns,), tl.float32)
    for choice in range(chosen):
        place = token * chosen + choice
        weight = _rounded(tl.load(weights + place).to(tl.float32), dtype)
        value = tl.load(y + place * columns + column, mask=inside, other=0).to(tl.float32)
        total += _rounded(value * weight, dtype)
    tl.store(out + token * columns + column, total.to(dtype), mask=inside)
