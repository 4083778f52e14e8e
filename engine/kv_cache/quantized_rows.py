"""Memory layout of keys and values of older tokens: rows of bytes, at 16, 8 or 4 bits.

Letters: B sequences, H heads, S tokens, D head width, n rows, R bytes of a row, g group. Keys and
values may differ in H and D (latent attention).

A row holds a whole number of tokens of all sequences and heads of one layer, so rows can be
appended without touching older ones, and the rows of a layer move as one block.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from engine.layout.kv import BLOCK_TOKENS, VALUE_GROUP
from engine.types import KvBits

_SLICE_ROWS = 16  # quantized or dequantized at once: bounds the float32 copy


class KvFormat(Protocol):
    """Encodes keys and values as rows, and decodes them."""

    tokens_per_row: int

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """keys, values [B, H, n * tokens_per_row, D] as rows, uint8 [n, R]."""

    def decode(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write rows [n, R] into keys and values [B, H, n * tokens_per_row, D]."""


class PlainFormat:
    """Implements KvFormat: one unquantized token per row."""

    tokens_per_row = 1

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """keys, values [B, H, n, D] -> uint8 [n, R]."""
        flat = [tensor.permute(2, 0, 1, 3).flatten(1) for tensor in (keys, values)]  # [n, B*H*D]
        return torch.cat(flat, dim=1).view(torch.uint8)

    def decode(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """rows [n, R] into keys and values [B, H, n, D]."""
        start = 0
        for out in (keys, values):
            batch, heads, tokens, width = out.shape
            end = start + batch * heads * width * out.element_size()
            flat = rows[:, start:end].view(out.dtype)  # [n, B*H*D]
            out.copy_(flat.view(tokens, batch, heads, width).permute(1, 2, 0, 3))
            start = end


class QuantizedFormat:
    """Implements KvFormat: blocks of tokens with affine codes of 8 or 4 bits.

    Keys are grouped along the tokens of a block, each channel by itself, values along the channels
    of each token: keys have channels that are always large (KIVI, arXiv 2402.02750). Scale and zero
    of a group have the tensor's own dtype; a decoded value differs by at most half a scale, plus
    the rounding of that dtype.
    """

    tokens_per_row = BLOCK_TOKENS

    def __init__(self, bits: KvBits) -> None:
        self._bits = bits

    def encode(self, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """keys, values [B, H, n * block, D] -> uint8 [n, R]."""
        step = _SLICE_ROWS * BLOCK_TOKENS
        pieces = []
        for start in range(0, keys.shape[2], step):
            parts: list[torch.Tensor] = []
            for tensor, over_tokens in ((keys, True), (values, False)):
                blocks = _blocks(tensor[:, :, start : start + step])
                grouped = _grouped(blocks.permute(2, 0, 1, 3, 4), over_tokens)
                codes, scale, zero = _quantize(grouped, 3 if over_tokens else 5, self._bits)
                packed = codes if self._bits == 8 else _pack(codes)
                parts += [
                    t.contiguous().flatten(1).view(torch.uint8) for t in (packed, scale, zero)
                ]
            pieces.append(torch.cat(parts, dim=1))  # [n, R]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def decode(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """rows [n, R] into keys and values [B, H, n * block, D]."""
        for first in range(0, rows.shape[0], _SLICE_ROWS):
            piece = rows[first : first + _SLICE_ROWS]
            tokens = slice(first * BLOCK_TOKENS, (first + piece.shape[0]) * BLOCK_TOKENS)
            used = 0
            for out, over_tokens in ((keys[:, :, tokens], True), (values[:, :, tokens], False)):
                used = self._decode_one(piece, used, out, over_tokens)

    def _decode_one(
        self, rows: torch.Tensor, start: int, out: torch.Tensor, over_tokens: bool
    ) -> int:
        """Fill out [B, H, n * block, D] from byte `start` of each row. Returns where the next
        field starts."""
        n = rows.shape[0]
        batch, heads, _, width = out.shape
        group = width if over_tokens else value_group(width)
        block = BLOCK_TOKENS * self._bits // 8
        shape = (n, batch, heads, block, width // group, group)
        shared = (1, 1, width) if over_tokens else (BLOCK_TOKENS, width // group, 1)
        scale_shape = (n, batch, heads, *shared)

        def take(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
            nonlocal start
            end = start + math.prod(shape[1:]) * dtype.itemsize
            found = rows[:, start:end].view(dtype).view(shape)
            start = end
            return found

        codes = take(torch.uint8, shape)
        scale, zero = take(out.dtype, scale_shape), take(out.dtype, scale_shape)
        whole = (codes if self._bits == 8 else _unpack(codes)).float()
        whole = whole.mul_(scale).add_(zero)  # [n, B, H, block, G, g]
        _blocks(out).copy_(whole.flatten(4).permute(1, 2, 0, 3, 4))
        return start


def value_group(width: int) -> int:
    """Channels of a value that share a scale: at most VALUE_GROUP, all if none divides."""
    group = math.gcd(width, VALUE_GROUP)
    return group if group >= VALUE_GROUP // 2 else width


def _blocks(tensor: torch.Tensor) -> torch.Tensor:
    """[B, H, n * block, D] as [B, H, n, block, D]."""
    batch, heads, tokens, width = tensor.shape
    return tensor.view(batch, heads, tokens // BLOCK_TOKENS, BLOCK_TOKENS, width)


def _grouped(blocks: torch.Tensor, over_tokens: bool) -> torch.Tensor:
    """[n, B, H, block, D] as [n, B, H, block, G, g]."""
    width = blocks.shape[-1]
    group = width if over_tokens else value_group(width)
    return blocks.view(*blocks.shape[:4], width // group, group)


def _quantize(
    grouped: torch.Tensor, dim: int, bits: KvBits
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes uint8 like grouped, scale and zero with `dim` of size 1: x = code * scale + zero."""
    top = (1 << bits) - 1
    low, high = grouped.amin(dim, keepdim=True), grouped.amax(dim, keepdim=True)
    exact = (high.float() - low.float()) / top
    # Rounded up, so that the largest value keeps its code; the smallest value is stored exactly.
    scale = (exact * (1 + 2**-7)).clamp_min(torch.finfo(grouped.dtype).tiny).to(grouped.dtype)
    codes = (grouped.float() - low.float()).div_(scale.float()).round_().clamp_(0, top)
    return codes.to(torch.uint8), scale, low


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Two 4-bit codes per byte: the first half of a block's tokens low, the second half high."""
    first, second = codes.chunk(2, dim=3)
    return first | (second << 4)


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    return torch.cat((packed & 15, packed >> 4), dim=3)
