"""Records of pre-quantized checkpoints: fp8, mxfp4 and int4 codes, never quantized again.

Letters: N output rows, K input columns. The native products decode the codes as they read them;
elsewhere a product dequantizes one matrix and multiplies by it. Both compute what the checkpoint's
codes represent.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from engine.errors import CheckpointError
from engine.experts.encoding.codec import MatrixView, RecordFormat, put_field, take_field
from engine.experts.kernels import native
from engine.experts.kernels.gemm import gemm
from engine.experts.kernels.rounding import rounded_activations
from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part
from engine.model.expert_codes import read_expert_codes
from engine.model.int4 import int4_values, split_words
from engine.model.loader import LoadedModel
from engine.model.quantized import fp8_values, mxfp4_values
from engine.types import ActivationBits, ExpertId


class PrequantizedMultiplier:
    """x [T, K] times a matrix of a pre-quantized checkpoint's codes -> [T, N]."""

    def __init__(
        self,
        prequantized: PrequantizedFormat,
        crossover: int = 0,
        activation_bits: ActivationBits = 16,
    ) -> None:
        """crossover: the most tokens of the native products; 0: there are none. activation_bits: 8
        rounds x, but for fp8 codes."""
        self._format = prequantized
        self._crossover = crossover
        self._activation_bits = activation_bits

    def __call__(self, x: torch.Tensor, view: MatrixView) -> torch.Tensor:
        """x: [T, K], contiguous, in the compute dtype. Returns [T, N] in the same dtype."""
        matrix = None
        if self._crossover:
            matrix = native.published_matrix(view, self._format, self._activation_bits)
        if matrix is not None and x.shape[0] <= self._crossover:
            return native.linear(x.contiguous(), view, matrix)  # [T, N]
        if self._activation_bits == 8 and self._format.name != "fp8":
            x = rounded_activations(x, self._format.block_columns)
        if matrix is None:
            return gemm(x, matrix_values(view, self._format).t())  # [T, N]
        return gemm(x, native.plain(view, matrix, x.dtype).t())  # [T, N]


def matrix_values(view: MatrixView, prequantized: PrequantizedFormat) -> torch.Tensor:
    """The values that a record's codes represent, float32 [N, K]."""
    assert view.scales is not None
    if prequantized.name == "mxfp4":
        return mxfp4_values(view.codes, view.scales)
    if prequantized.name == "int4":
        return int4_values(view.codes, *split_words(view.scales))
    values = fp8_values(
        view.codes, view.scales, (prequantized.block_rows, prequantized.block_columns)
    )
    return values.t() if view.part.transposed else values


def encode_prequantized(model: LoadedModel, expert: ExpertId, record: RecordFormat) -> torch.Tensor:
    """The record of one expert, uint8 [record bytes]: codes and scales as in the checkpoint.

    Raises CheckpointError if the model's own conversion of the codes does not give its weights.
    """
    out = torch.zeros(record.size_bytes, dtype=torch.uint8)
    codes = read_expert_codes(model, expert)
    for part in record.parts:
        if part.kind == "matrix":
            own = {
                part.name: codes[part.name].codes,
                f"{part.name}.scales": codes[part.name].scales,
            }
            for name, tensor in own.items():
                if tensor.nbytes != record.layout.field(name).size_bytes:
                    raise _not_kept(expert, part)
                put_field(out, record, name, tensor)
        else:
            put_field(out, record, part.name, model.read_part(expert, part).to(record.sixteen))
    if expert.expert == 0:
        _check(out, record, model.read_expert(expert), expert)
    return out


def prequantized_view(raw: torch.Tensor, record: RecordFormat, part: Part) -> MatrixView:
    """Typed views of one matrix's codes and scales. raw: uint8 [record bytes]."""
    assert record.prequantized is not None
    codes = take_field(raw, record, part.name)
    scales = take_field(raw, record, f"{part.name}.scales")
    shape = record.prequantized.scales_shape(part)
    if record.prequantized.name != "fp8":
        scales = scales.view(torch.uint8 if record.prequantized.name == "mxfp4" else torch.int32)
        return MatrixView(part, codes.view(part.rows, part.columns // 2), scales.view(shape))
    whole = codes.view(torch.float8_e4m3fn).view(part.shape)
    return MatrixView(part, whole, scales.view(torch.float32).view(shape))


def _check(
    out: torch.Tensor, record: RecordFormat, tensors: Mapping[str, torch.Tensor], expert: ExpertId
) -> None:
    """Compare one expert of each layer with its values: a conversion that does more than stack
    and join rows would mix up codes."""
    assert record.prequantized is not None
    for part in record.parts:
        if part.kind == "vector":
            continue
        values = matrix_values(prequantized_view(out, record, part), record.prequantized)
        wanted = tensors[part.name].t() if part.transposed else tensors[part.name]
        if not torch.equal(values, wanted):
            raise _not_kept(expert, part)


def _not_kept(expert: ExpertId, part: Part) -> CheckpointError:
    return CheckpointError(
        f"layer {expert.layer}: the codes of {part.name} cannot be kept as they are in this "
        "family: set precision.bits to 16, 8 or 4"
    )
