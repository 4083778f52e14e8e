"""What is read of a pre-quantized tensor, and how: shared by every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.model.safetensors_file import TensorEntry

ReadEntry = Callable[[TensorEntry, slice | None], torch.Tensor]
"""Reads a tensor of the checkpoint, or rows of it."""


class Codes(NamedTuple):
    """Codes and scales of a pre-quantized tensor. Letters: N rows, K columns, G groups along K.

    int4: codes uint8 [N, K/2], two a byte, the first in the lower half; scales float32 [N, G];
    zeros uint8 [N, G]. Other formats: codes and scales as stored, zeros None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
