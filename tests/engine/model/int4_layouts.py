"""Rewrites a tiny checkpoint as GPTQ, AWQ and compressed-tensors publish it at 4 bits.

Written from the formats' definitions, one number after the other, and not from the reader. Letters:
N output rows, K input columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.engine.model.layouts import Tensors, edit_config, read_tensors, write_tensors

IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
KEPT = (".gate.weight", "shared_expert_gate", "lm_head", "embed_tokens", "norm")
Store = Callable[[str, "Int4"], Tensors]


class Int4(NamedTuple):
    """codes [N, K], scales [N, G], zeros [N, G]."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def values(self) -> torch.Tensor:
        """(code - zero) * scale, float32 [N, K]."""
        group = self.codes.shape[1] // self.scales.shape[1]
        zeros = self.zeros.repeat_interleave(group, 1)
        return (self.codes - zeros) * self.scales.float().repeat_interleave(group, 1)


def quantized(
    weight: torch.Tensor, group: int, *, symmetric: bool, dtype: torch.dtype = torch.float16
) -> Int4:
    """Rounded to nearest in groups of so many columns (-1: all)."""
    rows, columns = weight.shape
    grouped = weight.float().view(rows, -1, columns if group == -1 else group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if symmetric:
        scales = (torch.maximum(-low, high) / 7).to(dtype)
        zeros = torch.full(scales.shape, 8)
    else:
        scales = ((high - low) / 15).to(dtype)
        zeros = torch.round(-low / scales.float()).clamp(0, 15).long()
    codes = torch.round(grouped / scales.float()[..., None]) + zeros[..., None]
    return Int4(codes.clamp(0, 15).long().view(rows, columns), scales, zeros)


def words(numbers: torch.Tensor, axis: int, order: tuple[int, ...] = IN_ORDER) -> torch.Tensor:
    """Eight neighbours along an axis in each int32, number order[i] in the bits from 4 * i."""
    given = np.moveaxis(numbers.numpy(), axis, -1)
    given = np.pad(given, [(0, 0)] * (given.ndim - 1) + [(0, -given.shape[-1] % 8)])
    packed = np.zeros((*given.shape[:-1], given.shape[-1] // 8), dtype=np.int64)
    for place in np.ndindex(packed.shape):
        for i in range(8):
            packed[place] += int(given[(*place[:-1], 8 * place[-1] + order[i])]) << (4 * i)
    return torch.from_numpy(np.moveaxis(packed.astype(np.uint32).view(np.int32), -1, axis).copy())


def publish(folder: Path, store: Store, config: dict[str, Any], **how: Any) -> Tensors:
    """Rewrite a folder: every linear layer but the router and the head as int4. Returns the values.

    how: of `quantized`.
    """
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in read_tensors(folder).items():
        if tensor.ndim != 2 or any(word in name for word in KEPT):
            stored[name] = values[name] = tensor
            continue
        own = quantized(tensor, **how)
        stored |= store(name.removesuffix(".weight"), own)
        values[name] = own.values()
    write_tensors(folder, stored, shards=2)
    edit_config(folder, config)
    return values


def publish_gptq(
    folder: Path, group: int = 32, *, symmetric: bool = True, layout: str = "gptq", **keys: Any
) -> Tensors:
    """As GPTQModel does: the first layout holds zero points less one."""
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": group,
        "sym": symmetric,
        "desc_act": False,
        "checkpoint_format": layout,
    }

    def store(name: str, own: Int4) -> Tensors:
        columns = own.codes.shape[1]
        zeros = words(own.zeros.t(), 1)
        return {
            f"{name}.qweight": words(own.codes.t(), 0),
            f"{name}.qzeros": zeros - 0x11111111 if layout == "gptq" else zeros,
            f"{name}.scales": own.scales.t(),
            f"{name}.g_idx": torch.arange(columns, dtype=torch.int32)
            // (columns // own.scales.shape[1]),
        }

    return publish(folder, store, {**config, **keys}, group=group, symmetric=symmetric)


def publish_awq(folder: Path, group: int = 32, **keys: Any) -> Tensors:
    """As AutoAWQ does: both packed along N, interleaved."""
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["gate"],
    }

    def store(name: str, own: Int4) -> Tensors:
        return {
            f"{name}.qweight": words(own.codes.t(), 1, AWQ_ORDER),
            f"{name}.qzeros": words(own.zeros.t(), 1, AWQ_ORDER),
            f"{name}.scales": own.scales.t(),
        }

    return publish(folder, store, {**config, **keys}, group=group, symmetric=False)


def publish_compressed(
    folder: Path,
    group: int = 32,
    *,
    symmetric: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    plain_zeros: bool = False,
    **keys: Any,
) -> Tensors:
    """As llm-compressor does (W4A16). plain_zeros: zero points as int8, as up to 0.9."""
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
        "dynamic": False,
    }
    config = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}
        },
    }

    def store(name: str, own: Int4) -> Tensors:
        found = {
            f"{name}.weight_packed": words(own.codes, 1),
            f"{name}.weight_scale": own.scales,
            f"{name}.weight_shape": torch.tensor(own.codes.shape),
        }
        if not symmetric:
            zeros = (own.zeros - 8).to(torch.int8) if plain_zeros else words(own.zeros, 0)
            found[f"{name}.weight_zero_point"] = zeros
        return found

    how = {"group": group, "symmetric": symmetric, "dtype": dtype}
    return publish(folder, store, {**config, **keys}, **how)
