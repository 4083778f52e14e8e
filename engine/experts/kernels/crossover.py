"""Stores up to how many tokens this machine's packed kernels are faster, by bits, beside their
self-tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.experts.kernels.multiplier import CROSSOVER_TOKENS
from engine.experts.kernels.probe import layout_key
from engine.files import write_atomically
from engine.layout.record import Part
from engine.native.library import products_name
from engine.types import Bits

Crossovers = Mapping[Bits, int]
"""The most tokens of one matrix that a packed kernel multiplies, by bits."""


# Multiplications of one matrix up to which the native products win whatever the bits: a GEMM of one
# expert costs about 0.2 ms before it begins. 128 tokens of the demo model (128 x 128 matrices) took
# 236 ms with GEMMs from 9 tokens on, 70 without.
SMALL_PRODUCT = 1 << 22


def native_crossover(crossover: int, parts: Sequence[Part]) -> int:
    """The most tokens of one expert that the native products take, given what was measured with a
    large matrix."""
    elements = max(part.elements for part in parts if part.kind == "matrix")
    return max(crossover, SMALL_PRODUCT // elements)


def keep_crossovers(folder: Path, tokens: Crossovers) -> None:
    """Store the measured crossovers of this machine's packed kernels."""
    write_atomically(_path(folder), json.dumps({"tokens": {str(b): n for b, n in tokens.items()}}))


def known_crossovers(folder: Path) -> Crossovers:
    """The crossovers measured on this machine with these kernels, on as many threads as it has
    cores; else CROSSOVER_TOKENS."""
    path = _path(folder)
    if not path.is_file():
        return CROSSOVER_TOKENS
    kept = json.loads(path.read_text(encoding="utf-8"))["tokens"]
    return {bits: int(kept.get(str(bits), own)) for bits, own in CROSSOVER_TOKENS.items()}


def _path(folder: Path) -> Path:
    return folder / "kernels" / f"crossovers-{layout_key('torch_int4')}-{products_name()}.json"
