"""The device program of `triton_int4`: one tile of rows times one tile of an expert's matrix.

Letters: T tokens sorted by expert, E experts, N output rows, K input columns, G groups along K.

Importing this module imports triton, which is an extra; engine.experts.kernels.triton_int4 does so
only when a product runs.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def grouped_int4_program(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    slots: tl.tensor,
    row_starts: tl.tensor,
    out: tl.tensor,
    experts: tl.tensor,
    rows: tl.tensor,
    columns: tl.tensor,
    slot_bytes: tl.tensor,
    group_size: tl.constexpr,
    expert_places: tl.constexpr,
    tile_tokens: tl.constexpr,
    tile_rows: tl.constexpr,
    step_columns: tl.constexpr,
    widen: tl.constexpr,
) -> None:
    """Program (tile of tokens, tile of N) of the product that `grouped_int4` describes.

    codes: uint8 pointer to slot 0's codes; scales: bf16 pointer to slot 0's scales; row_starts:
    int64 [E + 1]; slots: int64 [E]; expert_places: a power of two of at least E; step_columns:
    divides group_size, so that one step has one scale and one zero per row; widen: multiply in
    float32.
    """
    # The expert of this tile of tokens: tiles are numbered expert by expert.
    tile = tl.program_id(0)
    expert = tl.arange(0, expert_places)  # [E]
    real = expert < experts
    starts = tl.load(row_starts + expert, mask=real, other=0)
    ends = tl.load(row_starts + expert + 1, mask=real, other=0)
    tiles = (ends - starts + tile_tokens - 1) // tile_tokens
    mine = tl.sum((tl.cumsum(tiles, 0) <= tile).to(tl.int32), 0)
    if mine >= experts:
        return  # the grid covers the most tiles that may be needed
    earlier = tl.sum(tl.where(expert < mine, tiles, 0), 0)
    token = tl.load(row_starts + mine) + (tile - earlier) * tile_tokens
    token += tl.arange(0, tile_tokens)  # [T], int64
    token_real = token < tl.load(row_starts + mine + 1)

    slot_start = tl.load(slots + mine).to(tl.int64) * slot_bytes
    codes += slot_start
    scales += slot_start // 2

    row = tl.program_id(1) * tile_rows + tl.arange(0, tile_rows)  # [N]
    row_real = row < rows
    column = tl.arange(0, step_columns)  # [K]
    pair = tl.arange(0, step_columns // 2)  # [K/2]
    x += token[:, None] * columns  # [T, 1]
    codes += row[:, None] * (columns // 2)  # [N, 1]
    scales += row * (columns // group_size * 2)  # [N]

    total = tl.zeros((tile_tokens, tile_rows), tl.float32)
    for first in range(0, columns, step_columns):
        values = tl.load(x + first + column[None, :], mask=token_real[:, None], other=0)  # [T, K]
        if widen:
            values = values.to(tl.float32)
        packed = tl.load(codes + first // 2 + pair[None, :], mask=row_real[:, None], other=0)
        q = tl.interleave(packed & 0x0F, packed >> 4).to(tl.int8) - 8  # [N, K]
        # q - 8 is exact in every dtype; scale and zero are applied in float32, once per step.
        part = tl.dot(values, tl.trans(q.to(values.dtype)), input_precision="ieee")  # [T, N]
        place = scales + (first // group_size) * 2
        scale = tl.load(place, mask=row_real, other=0).to(tl.float32)  # [N]
        zero = tl.load(place + 1, mask=row_real, other=0).to(tl.float32)  # [N]
        sums = tl.sum(values.to(tl.float32), 1)  # [T]
        total += part * scale[None, :] + sums[:, None] * zero[None, :]  # [T, N]

    place = out + token[:, None] * rows + row[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=token_real[:, None] & row_real[None, :])
