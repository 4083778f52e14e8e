"""Pre-quantized checkpoints: finding codes and scales, and their values.

Letters: E experts, N output rows, K input columns, R x C a matrix as it is stored.

fp8: `X` float8_e4m3fn [.., R, C] with `X_scale_inv` [.., R/128, C/128], one scale per block (the
last block of a row or column may be partial). mxfp4: `X_blocks` uint8 [E, N, K/32, 16] (two e2m1
codes per byte, the lower half first) with `X_scales` uint8 [E, N, K/32]; the parameter is X, [E, K,
N]. int4: see engine.model.int4. Every other method is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import CheckpointError
from engine.layout.prequantized import MXFP4_GROUP, PrequantizedName
from engine.model.codes import Codes, ReadEntry
from engine.model.int4 import Int4Tensor, find_int4
from engine.model.int4_config import INT4_METHODS, READ, int4_scheme, not_read
from engine.model.safetensors_file import TensorEntry

_FP8_SCALES = "_scale_inv"
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALE = re.compile(
    r"[._](W_q|qweight|qzeros|g_idx|weight_packed|weight_scale|weight_scale_2|weight_zero_point|scale_inv"
    r"|SCB|absmax|quant_map)$"
)
_SIDE_FILES = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")


@dataclass(frozen=True)
class PrequantizedTensor:
    """One tensor that is stored as codes and scales.

    entry: as the model knows it (its dtype and bytes are the codes'); block: rows and columns that
    share a scale.
    """

    name: str
    format: PrequantizedName
    codes: TensorEntry
    scales: TensorEntry
    entry: TensorEntry
    block: tuple[int, int]

    @property
    def stored(self) -> tuple[TensorEntry, ...]:
        """The checkpoint's tensors that this one is made of."""
        return self.codes, self.scales

    def read(self, read: ReadEntry, rows: slice | None = None) -> Codes:
        """The codes and scales as they are stored. rows: of the first dimension of three."""
        sliced = rows if len(self.codes.shape) > 2 else None  # otherwise the rows share scales
        return Codes(read(self.codes, sliced), read(self.scales, sliced))

    def values(self, codes: Codes) -> torch.Tensor:
        """The values, float32, in the shape that the model knows."""
        if self.format == "fp8":
            return fp8_values(codes.codes, codes.scales, self.block)
        return mxfp4_values(codes.codes.flatten(-2), codes.scales).transpose(-1, -2)


Prequantized = PrequantizedTensor | Int4Tensor


def check_method(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names the method, if the quantization is not supported."""
    quantization = config.get("quantization_config")
    if not quantization:
        return
    if not isinstance(quantization, dict):
        raise CheckpointError(
            f"{folder / 'config.json'}: quantization_config is {quantization!r}, it must be an "
            "object with quant_method: mend it, or copy it again"
        )
    method = str(quantization.get("quant_method", "an unnamed method"))
    if method in INT4_METHODS:
        int4_scheme(folder, quantization)
    elif method == "fp8":
        _check_block(folder, quantization.get("weight_block_size"))
    elif method != "mxfp4":
        raise not_read(folder, method)


def _check_block(folder: Path, block: Any) -> None:
    """Raise CheckpointError unless fp8 has scales for blocks of so many rows and columns."""
    if not block:
        raise not_read(folder, "fp8 without weight_block_size")
    sides = block if isinstance(block, list) else ()
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise not_read(folder, f"fp8 in blocks of {block!r:.40}")


def refuse_scale(folder: Path, name: str) -> None:
    """Raise CheckpointError for a tensor outside the model that other tensors need to be read.

    Old GPTQ, ModelOpt and bitsandbytes checkpoints say in a file of their own, not in config.json,
    that their weights are codes. Without their scales they would be read as other weights.
    """
    if not _SCALE.search(name):
        return
    side = [file for file in _SIDE_FILES if (folder / file).is_file()]
    where = f" (see {side[0]})" if side else ""
    raise CheckpointError(
        f"{folder} holds {name}, a part of quantized weights{where}, but its config.json has no "
        f"quantization_config that is read here ({READ} are): give the bf16 checkpoint it was "
        "made from and let precision.bits choose the bits"
    )


def find_prequantized(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]
) -> Iterator[Prequantized]:
    """Every tensor of this checkpoint that is stored as codes and scales.

    Raises CheckpointError for an unsupported method, or codes without matching scales.
    """
    check_method(folder, config)
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method in INT4_METHODS:
        yield from find_int4(folder, int4_scheme(folder, quantization), tensors)
        return
    for name, entry in tensors.items():
        if method == "fp8" and entry.dtype == torch.float8_e4m3fn:
            yield _fp8_tensor(entry, tensors, tuple(quantization["weight_block_size"]))
        elif method == "mxfp4" and name.endswith("_blocks"):
            yield _mxfp4_tensor(entry, tensors)


def fp8_values(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """Values, float32 [.., R, C], of codes [.., R, C] (float8, or its bytes) and scales [.., r,
    c]."""
    if codes.dtype == torch.uint8:
        codes = codes.view(torch.float8_e4m3fn)
    values = codes.float()
    rows, columns = values.shape[-2:]
    scales = scales.float()
    if rows % block[0] or columns % block[1]:
        spread = scales.repeat_interleave(block[0], -2)[..., :rows, :]  # [.., R, c]
        return values.mul_(spread.repeat_interleave(block[1], -1)[..., :columns])
    blocks = values.view(*values.shape[:-2], rows // block[0], block[0], -1, block[1])
    blocks.mul_(scales[..., :, None, :, None])
    return values


def mxfp4_values(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values, float32 [.., N, K], of codes uint8 [.., N, K/2] and scales uint8 [.., N, K/32]."""
    pairs = _pair_table(codes.device)  # [256, 2]
    values = pairs.index_select(0, codes.reshape(-1).int())
    grouped = values.view(*scales.shape, MXFP4_GROUP)  # [.., N, K/32, 32]
    grouped.mul_(torch.exp2(scales.float() - 127)[..., None])
    return grouped.flatten(-2)  # [.., N, K]


def _pair_table(device: torch.device) -> torch.Tensor:
    """The two values of every byte, lower half first."""
    single = torch.tensor([*_E2M1, *(-value for value in _E2M1)], device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((single[byte & 0x0F], single[byte >> 4]), dim=-1)


def _fp8_tensor(
    entry: TensorEntry, tensors: Mapping[str, TensorEntry], block: tuple[int, ...]
) -> PrequantizedTensor:
    scales = tensors.get(entry.name + _FP8_SCALES)
    if len(entry.shape) < 2:
        raise CheckpointError(f"{entry.name}: fp8 of shape {entry.shape} is not read: {READ} are")
    sides = zip(entry.shape[-2:], block, strict=True)
    wanted = (*entry.shape[:-2], *(-(-size // side) for size, side in sides))
    fits = scales is not None and scales.dtype.is_floating_point and scales.dtype != entry.dtype
    if scales is None or not fits or scales.shape != wanted:
        raise _unmatched(entry, scales, f"{entry.name}{_FP8_SCALES} of shape {wanted}")
    return PrequantizedTensor(entry.name, "fp8", entry, scales, entry, (block[0], block[1]))


def _mxfp4_tensor(entry: TensorEntry, tensors: Mapping[str, TensorEntry]) -> PrequantizedTensor:
    name = entry.name.removesuffix("_blocks")
    scales = tensors.get(f"{name}_scales")
    fits = len(entry.shape) == 4 and entry.shape[-1] == MXFP4_GROUP // 2
    whole_bytes = scales is not None and {entry.dtype, scales.dtype} == {torch.uint8}
    if not fits or not whole_bytes or scales is None or scales.shape != entry.shape[:-1]:
        raise _unmatched(entry, scales, f"{name}_scales of shape {entry.shape[:-1]}, both in uint8")
    experts, rows, groups = scales.shape
    shape = (experts, groups * MXFP4_GROUP, rows)  # [E, K, N]
    whole = TensorEntry(name, entry.file, entry.dtype, shape, entry.offset, entry.size_bytes)
    return PrequantizedTensor(name, "mxfp4", entry, scales, whole, (1, MXFP4_GROUP))


def _unmatched(entry: TensorEntry, scales: TensorEntry | None, wanted: str) -> CheckpointError:
    found = "is missing" if scales is None else f"has shape {scales.shape} and {scales.dtype}"
    return CheckpointError(
        f"{entry.name} (shape {entry.shape}) holds codes that need {wanted}, which {found}: "
        "download the checkpoint again, or give the bf16 one"
    )
