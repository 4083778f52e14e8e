"""Rewrites a tiny checkpoint into the other layouts that hubs hold: shards, fused, other dtypes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.model.checkpoint import INDEX_NAME

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
