"""The experts of a layer in one native call: gate, up, activation and down of every expert that is
ready, over all threads.

Letters: T tokens, K chosen experts, D hidden, F expert width. An activation is recognized by what
it computes, not by its name: the native gate must agree with the module's own on random numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from engine.config.settings import EngineConfig
from engine.experts.encoding.codec import RecordFormat, matrix_view
from engine.experts.kernels.crossover import Crossovers, native_crossover
from engine.experts.kernels.native import NUMBERS, matrix_of, published_matrix
from engine.experts.kernels.prequantized import prequantized_view
from engine.experts.kernels.registry import KernelSupport
from engine.layout.record import Part
from engine.model.loader import LoadedModel
from engine.native import library
from engine.native.values import Activation, Experts, Gate, GateForm, Matrix, Number
from engine.types import Bits

_TRIED = 4096
_LEAST_AGREEING = 0.99  # of rounded values; a few fall to another side of a rounding bound
_MOST_ERROR = 2e-5  # relative to the largest value, in float32
_LIMITS = ("limit", "swiglu_limit")
_ALPHAS = ("alpha", "swiglu_alpha")


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
        self.most_tokens = {bits: one.crossover for bits, one in fused.items()}
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
            up, down = _matrix(record, up_name), _matrix(record, "down_proj")
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
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(1, 2 * _TRIED, generator=generator) * 4
    exact = _own_gate(module, both)
    rounded = _own_gate(module, both.to(dtype))
    if exact is None or rounded is None:
        return None
    for gate in _candidates(module):
        g, u = _parts(both, gate)
        found = _run(pool, gate, Number.FLOAT32, g, u)
        if not float((found - exact).abs().max()) <= _MOST_ERROR * float(exact.abs().max()):
            continue
        g, u = _parts(both.to(dtype).float(), gate)
        found = _run(pool, gate, NUMBERS[dtype], g, u).to(dtype)
        if float((found == rounded).float().mean()) >= _LEAST_AGREEING:
            return gate
    return None


def _own_gate(module: Any, both: torch.Tensor) -> torch.Tensor | None:
    """The module's activation of both halves, [T]; None if it does not take plain tensors."""
    try:
        with torch.inference_mode():
            if module.has_gate:
                found: torch.Tensor = module._apply_gate(both)
            else:
                found = module.act_fn(both[:, :_TRIED])
    except (RuntimeError, TypeError, AttributeError):
        return None
    return found.reshape(-1) if found.numel() == _TRIED else None


def _candidates(module: Any) -> Iterator[Gate]:
    limits = [float(v) for n in _LIMITS if (v := getattr(module, n, None)) is not None] or [0.0]
    alphas = [float(v) for n in _ALPHAS if (v := getattr(module, n, None)) is not None] or [1.0]
    if not module.has_gate:
        for activation in Activation:
            yield Gate(GateForm.NONE, activation, 0, 1.0, 0.0)
        return
    for form in (GateForm.PRODUCT, GateForm.WIDE, GateForm.CLAMPED, GateForm.CLAMPED_AFTER):
        for activation in Activation:
            for interleaved in (0, 1):
                yield Gate(form, activation, interleaved, 1.0, limits[0])
    for limit in limits:
        for alpha in alphas:
            for interleaved in (0, 1):
                yield Gate(GateForm.CLAMPED_PLUS_ONE, 0, interleaved, alpha, limit)


def _parts(both: torch.Tensor, gate: Gate) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up values, float32 [T] each."""
    if gate.interleaved:
        return both[0, ::2].contiguous(), both[0, 1::2].contiguous()
    g, u = both[0, :_TRIED], both[0, _TRIED:]
    return g.contiguous(), (g if gate.form == GateForm.NONE else u).contiguous()


def _run(
    pool: library.Threads, gate: Gate, number: Number, g: torch.Tensor, u: torch.Tensor
) -> torch.Tensor:
    out = torch.empty_like(g)
    pool.gate(gate, number, g.data_ptr(), u.data_ptr(), out.data_ptr(), g.numel())
    return out


def _matrix(record: RecordFormat, name: str) -> Matrix | None:
    """One matrix of a record with its bias, offsets from the record's start; None if it is not
    read natively."""
    part = next(part for part in record.parts if part.name == name)
    raw = torch.empty(record.size_bytes, dtype=torch.uint8)
    matrix: Matrix | None
    if record.prequantized is not None:
        matrix = published_matrix(prequantized_view(raw, record, part), record.prequantized)
    else:
        view = matrix_view(raw, record, part)
        matrix = matrix_of(view, record.layout.bits, record.layout.group_size)
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
