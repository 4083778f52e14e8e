"""The experts of a layer in one native call: gate, up, activation and down of every expert that is
ready, over all threads.

Letters: T tokens, K chosen experts, D hidden, F expert width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.config.settings import EngineConfig
from engine.experts.encoding.codec import RecordFormat, matrix_view
from engine.experts.kernels.activations import recognized_gate
from engine.experts.kernels.crossover import Crossovers, native_crossover
from engine.experts.kernels.native import NUMBERS, matrix_of, published_matrix
from engine.experts.kernels.prequantized import prequantized_view
from engine.experts.kernels.registry import KernelSupport
from engine.layout.record import Part
from engine.model.loader import LoadedModel
from engine.native import library
from engine.native.values import Experts, Gate, Matrix
from engine.types import ActivationBits, Bits


@dataclass(frozen=True)
class _Fused:
    """The native call for records of one precision; crossover: its most tokens of one expert."""

    experts: Experts
    crossover: int


class NativeExperts:
    """Runs experts of one model whose records lie in host memory, by bits.

    most_tokens: the most tokens of one expert that are multiplied, by bits; no entry: none are.
    """

    def __init__(self, fused: Mapping[Bits, _Fused], experts: int) -> None:
        self._fused = dict(fused)
        self.most_tokens: Mapping[Bits, int] = {b: one.crossover for b, one in fused.items()}
        self._addresses = (ctypes.c_uint64 * experts)()

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        config: EngineConfig,
        records: Mapping[Bits, RecordFormat],
        supports: Mapping[Bits, KernelSupport],
        crossovers: Crossovers,
    ) -> NativeExperts | None:
        """The native calls for these records; None if no precision has one."""
        module = model.layers[0].experts
        gate = None
        if not module.has_post_expert_norm and any("native" in s.names for s in supports.values()):
            gate = native_gate(module, model.dtype)
        if gate is None:
            return None
        fused = {}
        for bits, record in records.items():
            name = config.kernel.name
            if (
                own := supports[bits].kernel_for(16 if record.prequantized else bits, name)
            ) is None:
                continue
            up_name = "gate_up_proj" if module.has_gate else "up_proj"
            up, down = (
                _matrix(record, part, config.precision.activation_bits)
                for part in (up_name, "down_proj")
            )
            if own.name == "native" and up is not None and down is not None:
                crossover = config.kernel.crossover_tokens or native_crossover(
                    crossovers[bits], record.parts
                )
                fused[bits] = _Fused(Experts(up, down, gate), crossover)
        count = max(layer.count for layer in model.layers)
        return cls(fused, count) if fused else None

    def only(self, tokens: int) -> Experts | None:
        """How experts lie if all have one precision and this many tokens are multiplied at it."""
        if len(self._fused) != 1:
            return None
        (one,) = self._fused.values()
        return one.experts if tokens <= one.crossover else None

    def most_waves(self, tokens: int) -> int | None:
        """None: a call costs little, and what arrives is computed at once."""
        return None

    def begin(self, index: torch.Tensor) -> None:
        """Does nothing: each call reads the routing itself."""

    def run(
        self,
        bits: Bits,
        addresses: Mapping[int, int],
        x: torch.Tensor,
        index: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Compute the experts at these addresses for their tokens.

        addresses: of records of these bits, by expert; x [T, D]; index int64 [T, K]; out [T * K, D]
        of x's dtype. All contiguous. Places of other experts are left as they are.
        """
        records = self._addresses
        for expert, address in addresses.items():
            records[expert] = address
        library.current().experts(
            self._fused[bits].experts,
            records,
            x.data_ptr(),
            NUMBERS[x.dtype],
            index.shape[0],
            index.shape[1],
            index.data_ptr(),
            out.data_ptr(),
        )
        for expert in addresses:
            records[expert] = 0

    def combine(self, out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """out [T * K, D] of the experts in routing order and their weights [T, K] -> [T, D]."""
        tokens, chosen = weights.shape
        if weights.dtype not in NUMBERS:
            weights = weights.to(out.dtype)
        weights = weights.contiguous()
        found = out.new_empty(tokens, out.shape[1])
        library.current().combine(
            NUMBERS[out.dtype],
            out.data_ptr(),
            weights.data_ptr(),
            NUMBERS[weights.dtype],
            tokens,
            chosen,
            out.shape[1],
            found.data_ptr(),
        )
        return found


def native_gate(module: Any, dtype: torch.dtype) -> Gate | None:
    """The native gate that computes what this experts module's own does; None if none does."""
    pool = library.current()

    def run(gate: Gate, number: torch.dtype, g: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(g)
        pool.gate(gate, NUMBERS[number], g.data_ptr(), u.data_ptr(), out.data_ptr(), g.numel())
        return out

    return recognized_gate(module, dtype, run)


def _matrix(record: RecordFormat, name: str, activation_bits: ActivationBits) -> Matrix | None:
    """One matrix of a record with its bias, offsets from the record's start; None if it is not
    read natively."""
    part = next(part for part in record.parts if part.name == name)
    raw = torch.empty(record.size_bytes, dtype=torch.uint8)
    matrix: Matrix | None
    if record.prequantized is not None:
        own = prequantized_view(raw, record, part)
        matrix = published_matrix(own, record.prequantized, activation_bits)
    else:
        view = matrix_view(raw, record, part)
        layout = record.layout
        matrix = matrix_of(view, layout.bits, layout.group_size, activation_bits)
    if matrix is None:
        return None
    start = record.layout.field(name).offset
    matrix.codes_offset = start
    matrix.scales_offset += start
    bias = _bias(record, f"{name}_bias")
    if bias is not None:
        matrix.bias_offset = record.layout.field(bias.name).offset
        matrix.bias_number = NUMBERS[record.sixteen]
    return matrix


def _bias(record: RecordFormat, name: str) -> Part | None:
    return next((part for part in record.parts if part.name == name), None)
