"""Rewrites a tiny checkpoint into the other layouts that hubs hold: shards, fused, other dtypes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.model.weight_files import INDEX_NAME

Tensors = dict[str, torch.Tensor]
_GATE = re.compile(r"(.*\.experts)\.0\.gate_proj\.weight")


def read_tensors(folder: Path) -> Tensors:
    """All tensors of a folder."""
    found: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 1) -> None:
    """Replace a folder's weights. Neighbouring tensors lie in different shards, so that the parts
    of every expert do."""
    for file in [*folder.glob("*.safetensors"), folder / INDEX_NAME]:
        file.unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    files = [f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)]
    weight_map = {name: files[n % shards] for n, name in enumerate(sorted(tensors))}
    for file in files:
        own = {name: tensors[name] for name, where in weight_map.items() if where == file}
        save_file(own, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def fused(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Experts that are stored one by one (`gate_proj`, `up_proj`, `down_proj`) as one tensor each
    layer: gate_up_proj [E, 2F, D], down_proj [E, D, F]."""
    out = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    for prefix in [match.group(1) for name in tensors if (match := _GATE.fullmatch(name))]:
        count = len([name for name in tensors if re.fullmatch(rf"{prefix}\.\d+\.up_proj.*", name)])

        def part(name: str, index: int, prefix: str = prefix) -> torch.Tensor:
            return tensors[f"{prefix}.{index}.{name}.weight"]

        pairs = [torch.cat([part("gate_proj", n), part("up_proj", n)]) for n in range(count)]
        out[f"{prefix}.gate_up_proj"] = torch.stack(pairs)
        out[f"{prefix}.down_proj"] = torch.stack([part("down_proj", n) for n in range(count)])
    return out


def quantize_fp8(folder: Path, block: tuple[int, int], *, fuse: bool = False) -> Tensors:
    """Rewrite a folder as Qwen3-FP8 and DeepSeek-V3 are published: every linear layer but the
    router and the head as float8 codes with one float32 scale a block. Returns the values."""
    tensors = read_tensors(folder)
    kept = (".gate.", "lm_head", "embed_tokens", "norm")
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in (fused(tensors) if fuse else tensors).items():
        if tensor.ndim < 2 or any(word in name for word in kept):
            stored[name] = values[name] = tensor
            continue
        codes, scales = _fp8_codes(tensor.float(), block)
        stored[name], stored[f"{name}_scale_inv"] = codes, scales
        values[name] = _fp8_values(codes, scales, block)
    write_tensors(folder, stored, shards=2)
    edit_config(
        folder,
        {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
        },
    )
    return values


def quantize_mxfp4(folder: Path) -> Tensors:
    """Rewrite a gpt-oss folder as it is published: experts as e2m1 codes with e8m0 scales. Returns
    the values."""
    stored: Tensors = {}
    values: Tensors = {}
    for name, tensor in read_tensors(folder).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[name] = values[name] = tensor
            continue
        weight = tensor.float().transpose(1, 2)  # [E, N, K]
        grouped = weight.reshape(*weight.shape[:2], -1, 32)
        exponents = torch.floor(torch.log2(grouped.abs().amax(-1))) - 2  # 6 * 2^e covers the most
        grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        scaled = grouped / torch.exp2(exponents)[..., None]
        nearest = (scaled.abs()[..., None] - grid).abs().argmin(-1)
        codes = (nearest | ((scaled < 0).int() << 3)).to(torch.uint8)
        stored[f"{name}_blocks"] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        stored[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        signs = torch.where(scaled < 0, -1.0, 1.0)
        value = signs * grid[nearest] * torch.exp2(exponents)[..., None]
        values[name] = value.reshape(weight.shape).transpose(1, 2).contiguous()
    write_tensors(folder, stored, shards=2)
    edit_config(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    return values


def edit_config(folder: Path, quantization: dict[str, object]) -> None:
    """Name the quantization in config.json."""
    path = folder / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": quantization})
    )


def _fp8_codes(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = weight.shape[-2:]
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    scales = torch.empty(*weight.shape[:-2], *grid)
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i, j in torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).tolist():
        rows_of = slice(i * block[0], (i + 1) * block[0])
        columns_of = slice(j * block[1], (j + 1) * block[1])
        part = weight[..., rows_of, columns_of]
        scales[..., i, j] = part.abs().amax((-1, -2)) / 448
        codes[..., rows_of, columns_of] = (part / scales[..., i, j][..., None, None]).to(
            torch.float8_e4m3fn
        )
    return codes, scales


def _fp8_values(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    rows = torch.arange(codes.shape[-2]) // block[0]
    columns = torch.arange(codes.shape[-1]) // block[1]
    return codes.float() * scales[..., rows, :][..., columns]
