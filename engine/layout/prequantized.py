"""Pre-quantized checkpoints: the layout of their codes and scales, and a record that keeps them.

Pure arithmetic, no torch. Letters: N output rows, K input columns.

fp8: one float8_e4m3fn per weight and one float32 scale per block of rows and columns (DeepSeek-V3,
Qwen3 FP8). mxfp4: two e2m1 codes per byte along K and one power of two (e8m0) for 32 of them
(gpt-oss). int4: two codes per byte along K, and for each group of columns one word of 4 bytes that
holds a scale (of bf16 or fp16) and a zero point (GPTQ, AWQ, compressed-tensors).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from engine.layout.record import Part, RecordLayout, lay_out
from engine.types import Bits

PrequantizedName = Literal["fp8", "mxfp4", "int4"]
MXFP4_GROUP = 32


@dataclass(frozen=True)
class PrequantizedFormat:
    """How all experts of a checkpoint are stored.

    block_rows and block_columns: what one scale covers of a matrix as the module stores it (of [N,
    K] for mxfp4 and int4).
    """

    name: PrequantizedName
    block_rows: int
    block_columns: int

    @property
    def bits(self) -> Bits:
        """Bits of a code."""
        return 8 if self.name == "fp8" else 4

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return {
            "name": self.name,
            "block_rows": self.block_rows,
            "block_columns": self.block_columns,
        }

    def scales_shape(self, part: Part) -> tuple[int, int]:
        """Shape of one matrix's scales: along its rows and columns."""
        rows, columns = part.shape if self.name == "fp8" else (part.rows, part.columns)
        return -(-rows // self.block_rows), -(-columns // self.block_columns)


def prequantized_layout(parts: tuple[Part, ...], prequantized: PrequantizedFormat) -> RecordLayout:
    """A record of the checkpoint's codes: `<name>` and `<name>.scales` per matrix, biases at 16
    bits."""
    fields: list[tuple[str, int]] = []
    for part in parts:
        if part.kind == "vector":
            fields.append((part.name, part.elements * 2))
            continue
        rows, columns = prequantized.scales_shape(part)
        fields.append((part.name, part.elements * prequantized.bits // 8))
        scale_bytes = 1 if prequantized.name == "mxfp4" else 4
        fields.append((f"{part.name}.scales", rows * columns * scale_bytes))
    return lay_out(fields, prequantized.bits, 0)
