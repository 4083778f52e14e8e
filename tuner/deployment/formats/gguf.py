"""Chooses the GGUF types nearest to a config's precision, and computes their expert bytes.

Taken from llama.cpp's source, build 11434: bits a weight follow from its block structs; a type of
256 in a block falls back to another if rows are not divisible, and `--tensor-type` only counts
beside a quantized type for the whole file.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.precision.table import bits_table
from engine.types import BITS, DtypeName


@dataclass(frozen=True)
class GgufType:
    """A GGUF type. name: of a tensor's type; file_name: of the file's, as llama-quantize lists it;
    block: how many weights of a row share scales."""

    name: str
    file_name: str
    bits_per_weight: float
    block: int


PLAIN: dict[DtypeName, GgufType] = {
    "bfloat16": GgufType("bf16", "BF16", 16, 1),
    "float16": GgufType("f16", "F16", 16, 1),
    "float32": GgufType("f32", "F32", 32, 1),
}
BYTE_WIDE = GgufType("q8_0", "Q8_0", 8.5, 32)
NARROW = GgufType("q4_0", "Q4_0", 4.5, 32)  # the fewest bits for rows that 256 does not divide
PUBLISHED_4 = GgufType("mxfp4", "MXFP4_MOE", 4.25, 32)
NEAREST: dict[int, GgufType] = {
    8: BYTE_WIDE,
    4: GgufType("q4_K", "Q4_K_M", 4.5, 256),
    3: GgufType("q3_K", "Q3_K_M", 3.4375, 256),
    2: GgufType("q2_K", "Q2_K", 2.625, 256),
}


def expert_type(config: EngineConfig, facts: ModelFacts) -> GgufType:
    """The experts' type: the nearest that these shapes allow, 16 bits if none does."""
    plain = PLAIN[config.compute.dtype]
    bits = _average_bits(config, facts)
    if config.precision.prequantized and facts.prequantized is not None:
        if facts.prequantized.name != "int4":
            return PUBLISHED_4 if facts.prequantized.name == "mxfp4" else BYTE_WIDE
        bits = facts.prequantized.bits
    if bits == 16:
        return plain
    return next((t for t in (NEAREST[bits], NARROW) if _divides(t, facts)), plain)


def dense_type(config: EngineConfig) -> GgufType:
    """The type of the non-expert weights except embeddings, which keep theirs."""
    bits = config.precision.non_expert_bits
    return PLAIN[config.compute.dtype] if bits == 16 else NEAREST[bits]


def expert_layer_bytes(kind: GgufType, facts: ModelFacts) -> int:
    """Bytes of all experts of one layer in this type, without biases."""
    weights = sum(part.elements for part in facts.parts if part.kind == "matrix")
    return int(facts.experts * weights * kind.bits_per_weight / 8)


def _average_bits(config: EngineConfig, facts: ModelFacts) -> int:
    """Averages a plan of bits: a GGUF has one type for all experts of a layer."""
    table = bits_table(config, facts)
    if table is None:
        return config.precision.bits
    every = [bits for row in table for bits in row]
    mean = sum(every) / len(every)
    return min(BITS, key=lambda bits: abs(bits - mean))


def _divides(kind: GgufType, facts: ModelFacts) -> bool:
    columns = [part.columns for part in facts.parts if part.kind == "matrix"]
    return all(column % kind.block == 0 for column in columns)
