"""The self-test of grouped launches: a tiny layer against plain torch, in a child process.

Letters: T tokens, K chosen experts, E experts, D hidden, F expert width.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from engine.device.accelerator import bind_thread_to
from engine.device.base import Device
from engine.experts.encoding.codec import RecordFormat, encode
from engine.experts.kernels.activations import plain_gate
from engine.experts.kernels.grouped.launch import (
    GroupedFormat,
    LayerRows,
    interpreted,
    launch_experts,
    launch_sum,
)
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.prequantized import matrix_values
from engine.experts.kernels.probe import kept_outcome, place_key, run_in_child
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.slots import expert_view
from engine.layout.prequantized import MXFP4_GROUP, PrequantizedFormat, prequantized_layout
from engine.layout.record import Part, record_layout
from engine.native.values import Gate, GateForm
from engine.types import Bits

_EXPERTS, _CHOSEN = 5, 2
_TOKENS = (1, 3, 70)  # one tile each; rows that are searched; rows that are sorted
_TOLERANCE = 0.04  # 16 bits are rounded four times, and triton's interpreter cuts off


def failed_self_test(
    record: RecordFormat, layout: GroupedFormat, dtype: torch.dtype, device: Device, folder: Path
) -> str | None:
    """Why records of this format cannot be computed by grouped launches here; None if they can.

    folder: where the result is kept. dtype: of activations.
    """
    arguments = json.dumps(_described(record, layout.gate, dtype, device.torch_device))
    given = "-".join(arguments.translate(_WORDS).split())
    place = place_key(device.torch_device) + ("-interpreted" if interpreted() else "")
    path = folder / "kernels" / f"grouped-{place}-{given}.json"
    return kept_outcome(path, lambda: run_in_child(__name__, arguments))


def self_test(
    record: RecordFormat, gate: Gate, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Compute a layer of five experts, two of which are not there, at few and many tokens. Returns
    what was wrong."""
    layout = GroupedFormat.of(record, gate, dtype)
    if layout is None:
        return "no program reads such records"
    slots = [noise_record(record, seed) for seed in range(_EXPERTS)]
    arena = torch.cat(slots).to(device)
    starts = [expert * record.size_bytes for expert in range(_EXPERTS)]
    offsets = torch.tensor([*starts[:-2], -1, -1, -1])  # the last entry: no expert
    bounds = torch.arange(_EXPERTS + 2, device=device)
    generator = torch.Generator().manual_seed(0)
    for tokens in _TOKENS:
        x = torch.randn(tokens, layout.up.columns, generator=generator).to(dtype)
        index = torch.rand(tokens, _EXPERTS + 1, generator=generator).topk(_CHOSEN).indices
        index[0, 0] = 0  # one that is there
        weights = torch.rand(tokens, _CHOSEN, generator=generator)
        out = torch.zeros(tokens * _CHOSEN, layout.down.rows, dtype=dtype, device=device)
        rows = LayerRows.of(index.to(device), bounds)
        launch_experts(layout, arena, offsets.to(device), x.to(device), rows, out)
        found = launch_sum(out, weights.to(device)).cpu()
        plain = plain_experts(record, gate, slots[:-2], x, index)
        expected = (plain.view(tokens, _CHOSEN, -1) * weights[..., None]).sum(1)  # [T, D]
        error = float((found.float() - expected).abs().max() / expected.abs().max())
        if not error < _TOLERANCE:
            return f"grouped launches err by {error:.2g} at {tokens} tokens"
    return None


def noise_record(record: RecordFormat, seed: int) -> torch.Tensor:
    """The bytes of an expert of noise, uint8 [record bytes]."""
    generator = torch.Generator().manual_seed(seed)
    if record.prequantized is None:
        return encode(
            {
                part.name: torch.randn(part.shape, generator=generator) / part.shape[-1] ** 0.5
                for part in record.parts
            },
            record,
        )
    raw = torch.randint(0, 256, (record.size_bytes,), generator=generator, dtype=torch.uint8)
    for part in record.parts:  # scales and biases of the size that a model has
        field = record.layout.field(part.name if part.kind == "vector" else f"{part.name}.scales")
        piece = raw[field.offset : field.offset + field.size_bytes]
        if part.kind == "vector":
            noise = torch.randn(part.elements, generator=generator).to(record.sixteen)
            piece.copy_(noise.view(torch.uint8))
        else:
            piece.copy_(torch.randint(118, 126, piece.shape, generator=generator))
    return raw


def plain_experts(
    record: RecordFormat, gate: Gate, raw: list[torch.Tensor], x: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """The oracle: the outputs [T*K, D] in float32, expert by expert in plain torch, rounded to x's
    dtype where the products of one expert round. raw: the bytes of each; index [T, K]: experts
    beyond them give zeros."""
    dtype, chosen = x.dtype, index.shape[1]
    up_name = "up_proj" if gate.form == GateForm.NONE else "gate_up_proj"
    out = None
    for expert, data in enumerate(raw):
        place = (index.reshape(-1) == expert).nonzero()[:, 0]
        h = _plain_product(record, data, up_name, x[place // chosen].float(), dtype)
        if gate.form == GateForm.NONE:
            h = plain_gate(gate, dtype, h, h)
        elif gate.interleaved:
            h = plain_gate(gate, dtype, h[:, ::2], h[:, 1::2])
        else:
            h = plain_gate(gate, dtype, *h.chunk(2, dim=1))
        y = _plain_product(record, data, "down_proj", h, dtype)
        if out is None:
            out = y.new_zeros(index.numel(), y.shape[1])
        out[place] = y
    assert out is not None
    return out


def _plain_product(
    record: RecordFormat, raw: torch.Tensor, name: str, x: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """x [t, K] in float32 times a matrix of a record, with its bias -> [t, N]."""
    view = expert_view(raw, record)
    matrix, bits, group = view.matrices[name], record.layout.bits, record.layout.group_size
    if record.prequantized is not None:
        weight = matrix_values(matrix, record.prequantized)
    elif bits == 16:
        weight = matrix.codes.float()
        weight = weight.t() if matrix.part.transposed else weight
    else:
        plain = Multiplier(bits, group, record.code_layout, NO_KERNELS, "dequantize")
        weight = plain.dequantized(matrix)
    y = (x @ weight.t()).to(dtype)
    if f"{name}_bias" in view.vectors:
        y = y + view.vectors[f"{name}_bias"].to(dtype)
    return y.float()


def tiny_record(
    bits: Bits,
    *,
    group: int = 0,
    is_gated: bool = True,
    is_transposed: bool = False,
    has_bias: bool = False,
    is_mxfp4: bool = False,
    sixteen: torch.dtype = torch.bfloat16,
) -> RecordFormat:
    """A record of a small expert: D of three groups, F of two. group: of 4, 3 and 2 bits."""
    unit = max(MXFP4_GROUP, group)
    hidden, width = 3 * unit, 2 * unit
    up, rows = ("gate_up_proj", 2 * width) if is_gated else ("up_proj", width)
    up_shape, down_shape = (rows, hidden), (hidden, width)
    if is_transposed:
        up_shape, down_shape = up_shape[::-1], down_shape[::-1]
    parts = [Part(up, up_shape, is_transposed), Part("down_proj", down_shape, is_transposed)]
    if has_bias:
        parts += [Part(f"{up}_bias", (rows,)), Part("down_proj_bias", (hidden,))]
    if not is_mxfp4:
        return RecordFormat(
            tuple(parts), record_layout(tuple(parts), bits, group), sixteen, "plain"
        )
    published = PrequantizedFormat("mxfp4", 1, MXFP4_GROUP)
    layout = prequantized_layout(tuple(parts), published)
    return RecordFormat(tuple(parts), layout, sixteen, "plain", published)


_WORDS = str.maketrans('{}[]",:', " " * 7)


def _described(
    record: RecordFormat, gate: Gate, dtype: torch.dtype, device: torch.device
) -> list[Any]:
    """What the self-test depends on, as JSON: a record like this one, a gate, where and in what."""
    kinds = {
        "bits": record.layout.bits,
        "group": record.layout.group_size,
        "is_gated": gate.form != GateForm.NONE,
        "is_transposed": any(part.transposed for part in record.parts),
        "has_bias": any(part.kind == "vector" for part in record.parts),
        "is_mxfp4": record.prequantized is not None,
    }
    own = [gate.form, gate.activation, gate.interleaved, gate.alpha, gate.limit]
    return [kinds, _name(record.sixteen), own, _name(dtype), str(device)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _main() -> int:
    kinds, sixteen, gate, dtype, device = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    bind_thread_to(torch.device(device))
    record = tiny_record(**kinds, sixteen=getattr(torch, sixteen))
    found = self_test(record, Gate(*gate), getattr(torch, dtype), torch.device(device))
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
