"""Stores up to how many tokens the packed kernels of a device are faster, by bits, beside their
self-tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from engine.derived.file import DerivedKind, load_json, save_json
from engine.experts.kernels.multiplier import CROSSOVER_TOKENS, ROUNDED_CROSSOVER_TOKENS
from engine.experts.kernels.probe import layout_key, place_key
from engine.layout.record import Part
from engine.native.library import products_name
from engine.types import ActivationBits, Bits, product_key

CROSSOVERS = DerivedKind("file of crossovers", 1, "`tune profile` measures them again")

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


def keep_crossovers(folder: Path, tokens: Mapping[str, int], device: torch.device) -> None:
    """Store the measured crossovers of this device's packed kernels, by product_key."""
    save_json(_path(folder, device), CROSSOVERS, dict(tokens))


def known_crossovers(
    folder: Path, device: torch.device, activation_bits: ActivationBits = 16
) -> Crossovers:
    """The crossovers measured on this device with these kernels, on the CPU on as many threads as
    it has cores; else CROSSOVER_TOKENS, or ROUNDED_CROSSOVER_TOKENS with activations of 8 bits."""
    kept = load_json(_path(folder, device), CROSSOVERS, _from_json) or {}
    known = ROUNDED_CROSSOVER_TOKENS if activation_bits == 8 else CROSSOVER_TOKENS
    return {bits: kept.get(product_key(bits, activation_bits), own) for bits, own in known.items()}


def _from_json(kept: Mapping[str, int]) -> dict[str, int]:
    return {key: int(tokens) for key, tokens in kept.items()}


def _path(folder: Path, device: torch.device) -> Path:
    key = f"{layout_key('torch_int4')}-{products_name()}"
    if device.type != "cpu":
        key = place_key(device)
    return folder / "kernels" / f"crossovers-{key}.json"
