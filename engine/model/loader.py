"""Loads any registered transformers MoE model without its experts.

In: a folder. Out: LoadedModel, whose non-expert weights are resident, whose experts modules are
empty shells that dispatch to this engine's hook, and whose experts can be read one by one. Peak
memory is the non-expert weights plus one tensor. Must not know of slots, policies or devices'
streams.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers import initialization as transformers_initialization

from engine.errors import CheckpointError
from engine.layout.prequantized import PrequantizedFormat, PrequantizedName
from engine.layout.record import GROUP_CHOICES, Part
from engine.model.checkpoint import Checkpoint
from engine.model.description import build_meta_model, find_experts, read_config
from engine.model.kv_shape import KvLayer, kv_layers
from engine.model.non_expert import quantizable_linears
from engine.model.safetensors_file import TensorEntry
from engine.model.sources import ParameterSource, plan_sources
from engine.model.weight_files import read_json
from engine.types import ExpertId

EXPERTS_IMPLEMENTATION = "expertune"
_SIXTEEN_BIT = (torch.bfloat16, torch.float16)

QuantizeLinear = Callable[[nn.Linear, torch.Tensor], nn.Module]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MoeLayer:
    """One MoE layer: its experts shell, its router, and the sources of its experts' weights."""

    index: int
    name: str
    experts: nn.Module
    router: nn.Module | None
    count: int
    parts: tuple[Part, ...]
    sources: dict[str, ParameterSource]


@dataclass(frozen=True)
class LoadedModel:
    """A model without its experts.

    prequantized: the format of all experts, None if they are not pre-quantized, or not all alike;
    linears: the layers that non_expert_bits quantizes, by name, before quantization; kv_layers:
    what each layer's kv_cache holds, nothing if that is unknown.
    """

    folder: Path
    checkpoint: Checkpoint
    config: Any
    model: Any
    layers: tuple[MoeLayer, ...]
    dtype: torch.dtype
    prequantized: PrequantizedFormat | None
    linears: dict[str, nn.Linear]
    kv_layers: tuple[KvLayer, ...] = ()

    def read_expert(self, expert: ExpertId) -> dict[str, torch.Tensor]:
        """One expert's parameters as the module stores them, in the checkpoint's dtype."""
        return {part.name: self.read_part(expert, part) for part in self.layers[expert.layer].parts}

    def read_part(self, expert: ExpertId, part: Part) -> torch.Tensor:
        """One parameter of one expert. Raises CheckpointError if its shape differs from the
        model's."""
        layer = self.layers[expert.layer]
        tensor = layer.sources[part.name].convert_expert(
            expert.expert, layer.count, self.checkpoint.read, self.model
        )
        _check_values(f"{layer.name}.{part.name}", tensor)
        if tuple(tensor.shape) != part.shape:
            raise CheckpointError(
                f"{layer.name}.{part.name}, expert {expert.expert}: the checkpoint gives shape "
                f"{tuple(tensor.shape)}, the model expects {part.shape}"
            )
        return tensor

    def expert_entries(self) -> Iterator[TensorEntry]:
        """Every checkpoint tensor that holds experts' parameters."""
        for layer in self.layers:
            for source in layer.sources.values():
                for keys in source.keys.values():
                    for key in keys:
                        yield self.checkpoint.tensors[key]


def load_model(
    folder: Path,
    dtype: torch.dtype,
    *,
    trust_remote_code: bool = False,
    quantize: QuantizeLinear | None = None,
    weights: bool = True,
) -> LoadedModel:
    """Build the model on `meta`, find the experts, load the non-expert weights.

    weights: False leaves them on `meta` and reads headers only; quantize: makes the replacement of
    a linear layer from its weight [N, K], as soon as that is read. Raises ModelError subclasses
    that name the family and say what to try.
    """
    checkpoint = Checkpoint(folder)
    config = read_config(folder, checkpoint, trust_remote_code=trust_remote_code)
    model = build_meta_model(config, folder, trust_remote_code=trust_remote_code)
    read_generation_config(model, folder)
    shells = find_experts(model, config)
    sources = plan_sources(model, checkpoint)
    state_names = set(model.state_dict())
    dtype_plan = model._get_dtype_plan(dtype)
    layers = tuple(
        _detach_experts(index, name, module, model, sources, folder)
        for index, (name, module) in enumerate(shells)
    )
    kv_held = kv_layers(model, [layer.experts for layer in layers])
    expert_names = {f"{layer.name}.{part.name}" for layer in layers for part in layer.parts}
    linears = quantizable_linears(model, [layer.router for layer in layers])
    if weights:
        cast = partial(_cast, dtype=dtype, dtype_plan=dtype_plan)
        missing = state_names - expert_names
        for name, tensor in _non_expert_tensors(model, checkpoint, sources, expert_names):
            missing.discard(name)
            owner, _, leaf = name.rpartition(".")
            if quantize is not None and owner in linears and leaf == "weight":
                _check_shape(name, tensor, linears[owner].weight.shape)
                model.set_submodule(owner, quantize(linears[owner], tensor))
            else:
                _set_tensor(model, name, cast(name, tensor))
        _tie_weights(model, folder, missing)
        _check_complete(model, folder, state_names - expert_names)
        _materialize_buffers(model)
    else:
        model.tie_weights()
    model.eval()
    model.requires_grad_(False)
    prequantized = _prequantized_format(layers, checkpoint)
    found = folder, checkpoint, config, model, layers, dtype, prequantized, linears
    return LoadedModel(*found, kv_held)


def read_generation_config(model: Any, folder: Path) -> None:
    """Give the model its generation_config.json, as from_pretrained does: its end tokens and
    sampling values go before config.json's. Raises CheckpointError for one that cannot be read."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    found = read_json(path)
    try:
        model.generation_config = GenerationConfig.from_dict(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no generation config ({error}): mend it, or move it away"
        ) from None
    ends = model.generation_config.eos_token_id
    if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise CheckpointError(f"{path}: eos_token_id is {ends}, it must be a token id or a list")


def find_router(model: Any, experts_name: str) -> nn.Module | None:
    """The router beside an experts module: the sibling that owns the gate's weight."""
    parent: nn.Module = model.get_submodule(experts_name.rpartition(".")[0])
    siblings: dict[str, nn.Module] = dict(parent.named_children())
    for name in ("gate", "router"):
        if name in siblings:
            return siblings[name]
    for module in siblings.values():
        if "Router" in type(module).__name__ or "Gate" in type(module).__name__:
            return module
    return None


def _detach_experts(
    index: int,
    name: str,
    module: nn.Module,
    model: Any,
    sources: dict[str, ParameterSource],
    folder: Path,
) -> MoeLayer:
    parameters = dict(module.named_parameters(recurse=False))
    count = int(module.num_experts)  # type: ignore[arg-type]
    own: dict[str, ParameterSource] = {}
    parts = []
    for part_name, parameter in parameters.items():
        if parameter.shape[0] != count:
            continue
        source = sources.get(f"{name}.{part_name}")
        if source is None:
            raise CheckpointError(
                f"{folder} holds no tensors for {name}.{part_name}: finish the download, or check "
                "that config.json belongs to these weights, under the names that transformers saves"
            )
        own[part_name] = source
        shape = tuple(parameter.shape[1:])
        transposed = bool(module.is_transposed) and len(shape) == 2
        parts.append(Part(part_name, shape, transposed))
        del module._parameters[part_name]
    module.config._experts_implementation = EXPERTS_IMPLEMENTATION  # type: ignore[union-attr]
    router = find_router(model, name)
    return MoeLayer(index, name, module, router, count, tuple(parts), own)


def _prequantized_format(
    layers: Sequence[MoeLayer], checkpoint: Checkpoint
) -> PrequantizedFormat | None:
    """The format of all expert matrices, None if they are not pre-quantized, or not all alike.

    A block's rows are reduced to a number that divides each of the matrices that are joined, and
    groups of int4 to one that divides all: their scales are then repeated.
    """
    found: set[tuple[PrequantizedName, int]] = set()
    rows = columns = 0
    for layer in layers:
        for part in layer.parts:
            if part.kind == "vector":
                continue
            for key in (key for keys in layer.sources[part.name].keys.values() for key in keys):
                own = checkpoint.prequantized.get(key)
                if own is None:
                    return None
                if own.format == "int4" and not is_sixteen_bit(own.scales.dtype):
                    logger.warning(
                        "%s: scales of int4 codes in %s are not kept as published: precision.bits "
                        "can be 16, 8, 4, 3 or 2",
                        checkpoint.folder,
                        own.scales.dtype,
                    )
                    return None
                found.add((own.format, 0 if own.format == "int4" else own.block[1]))
                rows = math.gcd(rows, own.block[0], own.entry.shape[-2])
                columns = math.gcd(columns, own.block[1])
    if len(found) != 1:
        return None
    name, _ = found.pop()
    if name == "int4":
        group = next((group for group in GROUP_CHOICES if columns % group == 0), columns)
        return PrequantizedFormat(name, 1, group)
    return PrequantizedFormat(name, rows if name == "fp8" else 1, columns)


def _non_expert_tensors(
    model: Any,
    checkpoint: Checkpoint,
    sources: dict[str, ParameterSource],
    expert_names: set[str],
) -> Iterator[tuple[str, torch.Tensor]]:
    for target, source in sources.items():
        if target not in expert_names:
            yield from source.convert(checkpoint.read, model).items()


def _cast(
    name: str, tensor: torch.Tensor, dtype: torch.dtype, dtype_plan: dict[str, torch.dtype]
) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    wanted = dtype
    for pattern, kept in dtype_plan.items():
        if pattern in name:
            wanted = kept
    return tensor.to(wanted).contiguous()


def _set_tensor(model: Any, name: str, tensor: torch.Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if leaf in owner._buffers:
        tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        owner._buffers[leaf] = tensor
        return
    _check_shape(name, tensor, owner._parameters[leaf].shape)
    if owner._parameters[leaf].is_floating_point():
        _check_values(name, tensor)
    parameter = nn.Parameter(tensor, requires_grad=False)
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    owner._parameters[leaf] = parameter


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """Refuse codes of a quantization that config.json does not name."""
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{name}: the checkpoint holds whole numbers ({tensor.dtype}), not weights: it was "
            "quantized in a way that config.json does not name; give the bf16 checkpoint"
        )


def _check_shape(name: str, tensor: torch.Tensor, expected: torch.Size) -> None:
    if tensor.shape != expected:
        raise CheckpointError(
            f"{name}: the checkpoint gives shape {tuple(tensor.shape)}, the config asks for "
            f"{tuple(expected)}: config.json belongs to other weights"
        )


def _materialize_buffers(model: Any) -> None:
    """Compute buffers that no checkpoint stores (rotary frequencies), in the modules that own
    them."""
    guard = transformers_initialization.guard_torch_init_functions()
    with torch.no_grad(), guard:
        for owner, module in _modules_with_owner(model, model):
            missing = [
                name
                for name, buffer in module._buffers.items()
                if buffer is not None and buffer.is_meta
            ]
            if missing:
                for name in missing:
                    buffer = module._buffers[name]
                    assert buffer is not None
                    module._buffers[name] = torch.empty_like(buffer, device="cpu")
                owner._init_weights(module)


def _modules_with_owner(module: nn.Module, owner: Any) -> Iterator[tuple[Any, nn.Module]]:
    if isinstance(module, PreTrainedModel):
        owner = module
    yield owner, module
    for child in module.children():
        yield from _modules_with_owner(child, owner)


def _tie_weights(model: Any, folder: Path, missing: set[str]) -> None:
    """Tie head and embeddings as from_pretrained does: either may be the one that is stored, and
    where both are stored with different values they stay two. missing: names without a tensor."""
    named = set(model.all_tied_weights_keys)
    model.tie_weights(missing_keys=missing, recompute_mapping=False)
    for name in named - set(model.all_tied_weights_keys):
        logger.warning("%s: config.json ties %s, but it is stored and is used", folder, name)


def _check_complete(model: Any, folder: Path, names: set[str]) -> None:
    missing = [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_meta and name in names
    ]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} tensors that the model needs, first {missing[0]}: "
            "finish the download, or check that config.json belongs to these weights"
        )


def is_sixteen_bit(dtype: torch.dtype) -> bool:
    """True for bf16 and fp16."""
    return dtype in _SIXTEEN_BIT
