"""Reads one expert's codes and scales as a pre-quantized checkpoint holds them, each tensor once.

Letters: N output rows, K input columns, R x C a matrix as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part
from engine.model.codes import Codes
from engine.model.int4 import int4_words
from engine.model.loader import LoadedModel
from engine.model.quantized import Prequantized
from engine.types import ExpertId


def read_expert_codes(model: LoadedModel, expert: ExpertId) -> dict[str, Codes]:
    """One expert's matrices: codes as bytes [R, C] (mxfp4, int4: [N, K/2]), and scales (int4: words
    that hold zero points too)."""
    parts = model.layers[expert.layer].parts
    return {part.name: _part_codes(model, expert, part) for part in parts if part.kind == "matrix"}


def _part_codes(model: LoadedModel, expert: ExpertId, part: Part) -> Codes:
    layer, checkpoint, kept = model.layers[expert.layer], model.checkpoint, model.prequantized
    assert kept is not None, "the checkpoint is not published quantized"
    held: dict[str, Codes] = {}

    def converted(of: Callable[[Prequantized, Codes], torch.Tensor]) -> torch.Tensor:
        def read(name: str, rows: slice | None) -> torch.Tensor:
            if name not in held:  # codes and scales ask for the same rows
                held[name] = checkpoint.read_codes(name, rows)
            return of(checkpoint.prequantized[name], held[name])

        source = layer.sources[part.name]
        return source.convert_expert(expert.expert, layer.count, read, model.model)

    codes = converted(_code_bytes)
    scales = converted(lambda own, found: _scale_rows(own, found, kept))
    return Codes(codes, scales[:: kept.block_rows].contiguous())


def _code_bytes(own: Prequantized, held: Codes) -> torch.Tensor:
    """Code bytes, uint8 [.., R, C], or [E, N, K/2], or [N, K/2]."""
    return held.codes.flatten(-2) if own.format == "mxfp4" else held.codes.view(torch.uint8)


def _scale_rows(own: Prequantized, held: Codes, kept: PrequantizedFormat) -> torch.Tensor:
    """One row of scales per row of codes, so that both are joined in the same way: [.., R, c]."""
    if held.zeros is not None:
        words = int4_words(held.scales, held.zeros)
        return words.repeat_interleave(own.block[1] // kept.block_columns, -1)
    if own.format == "mxfp4":
        return held.scales
    return held.scales.float().repeat_interleave(own.block[0], -2)[..., : own.codes.shape[-2], :]
