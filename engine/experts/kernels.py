"""Products of activations with one expert's matrices, where they lie in a slot.

Letters: T tokens, N output rows, K input columns.

A kernel is torch's own int4/int8 product (CPU) where shapes allow, else dequantize + GEMM, which is
also the oracle. Which of torch's kernels hold on this machine and for these shapes is found by a
numeric self-test in a child process (they can crash on odd shapes) and remembered on disk.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional

from engine.experts.codec import (
    CodeLayout,
    MatrixView,
    can_unpack,
    expand_codes,
    unpack_codes,
)
from engine.experts.quantization import Quantized, dequantize
from engine.records import Part
from engine.types import Bits, KernelName

# Above this many tokens an expert is dequantized once and multiplied by GEMM, where no profile of
# the machine says otherwise. Measured on the reference machine: int4 0.40 ms, bf16 GEMM 0.24 ms +
# dequantization 0.5 ms at 64 tokens.
CROSSOVER_TOKENS = 128
_TOLERANCE = 0.02


@dataclass(frozen=True)
class KernelSupport:
    """Which of torch's packed kernels passed the self-test for all shapes of this model."""

    int4: bool
    int8: bool


NO_KERNELS = KernelSupport(int4=False, int8=False)


Product = Callable[[torch.Tensor, MatrixView], torch.Tensor]
"""x [T, K] times a matrix in a slot -> [T, N]."""


class Multiplier:
    """x [T, K] times an expert's matrix -> [T, N], by the fastest correct kernel.

    group_size: of 4, 3 and 2 bits; name: `dequantize` forces the oracle; crossover: up to so many
    tokens the packed kernels are used.
    """

    def __init__(
        self,
        bits: Bits,
        group_size: int,
        code_layout: CodeLayout,
        support: KernelSupport,
        name: KernelName,
        crossover: int = CROSSOVER_TOKENS,
    ) -> None:
        self._bits = bits
        self._crossover = crossover
        self._group = group_size
        self._code_layout = code_layout
        fast = name == "auto"
        self._int4 = fast and support.int4 and code_layout == "torch_int4"
        self._int8 = fast and support.int8

    def __call__(self, x: torch.Tensor, view: MatrixView) -> torch.Tensor:
        """x: [T, K], contiguous, in the compute dtype. Returns [T, N] in the same dtype."""
        if self._bits == 16:
            weight = view.codes.to(x.dtype)
            return gemm(x, weight if view.part.transposed else weight.t())  # [T, N]
        assert view.scales is not None
        few = x.shape[0] <= self._crossover
        if self._bits == 8:
            if self._int8 and few:
                scales = view.scales.to(x.dtype)
                out = torch.ops.aten._weight_int8pack_mm(x, view.codes, scales)
                return cast(torch.Tensor, out)  # [T, N]
            return gemm(x, self.dequantized(view, x.dtype).t())  # [T, N]
        opaque = not can_unpack(view.part.rows, self._code_layout)
        if (self._int4 and few) or opaque:
            codes = self._four_bit_codes(view)
            scales = view.scales.to(x.dtype)
            out = torch.ops.aten._weight_int4pack_mm_for_cpu(x, codes, self._group, scales)
            return cast(torch.Tensor, out)  # [T, N]
        return gemm(x, self.dequantized(view, x.dtype).t())  # [T, N]

    def dequantized(self, view: MatrixView, dtype: torch.dtype) -> torch.Tensor:
        """The matrix as plain weights [N, K]."""
        assert view.scales is not None
        if self._bits == 8:
            codes = view.codes
        else:
            codes = unpack_codes(self._four_bit_codes(view), view.part.columns, self._code_layout)
        return dequantize(Quantized(codes, view.scales), self._bits, self._group).to(dtype)

    def _four_bit_codes(self, view: MatrixView) -> torch.Tensor:
        if self._bits == 4:
            return view.codes
        return expand_codes(view.codes, self._bits, view.part.rows, view.part.columns)


def gemm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [T, K] @ weight [K, N], with T padded to few distinct sizes in reduced precision.

    oneDNN compiles and keeps a kernel of about 0.4 MB for every new T (0.3 ms each, measured),
    which would fill the budget while prompts of many lengths pass; float32 goes to another library.
    """
    if x.dtype == torch.float32 or x.device.type != "cpu":
        return x @ weight  # [T, N]
    tokens = x.shape[0]
    if tokens == 1:
        with single_token_products():
            return x @ weight  # [1, N]
    x = functional.pad(x, (0, 0, 0, padded_length(tokens) - tokens))  # [T', K]
    with single_token_products(active=False):
        return (x @ weight)[:tokens]  # [T, N]


@contextlib.contextmanager
def single_token_products(active: bool = True) -> Iterator[None]:
    """Inside, products run without oneDNN where `active`, with it otherwise.

    For one bf16 row torch's own matrix-vector product is 1.6x faster than oneDNN's (1024 x 1024:
    107 against 182 us, measured interleaved) and compiles nothing; from 2 rows on it is slower.
    """
    set_flags: Callable[..., tuple[object, ...]] = torch.backends.mkldnn.set_flags
    former = set_flags(_enabled=not active)
    try:
        yield
    finally:
        set_flags(*former)


def padded_length(tokens: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << (tokens - 1).bit_length()
    return power * 3 // 4 if tokens <= power * 3 // 4 else power


def code_layout_for(support: KernelSupport) -> CodeLayout:
    """How codes of 4 bits and less are arranged on this machine."""
    return "torch_int4" if support.int4 else "plain"


def layout_key(code_layout: CodeLayout) -> str:
    """Names everything the packed bytes depend on beside the quantization itself."""
    if code_layout == "plain":
        return "plain"
    capability = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "")
    return f"int4-{capability}-torch{'.'.join(torch.__version__.split('.')[:2])}"


def keep_crossover(folder: Path, tokens: int) -> None:
    """Remember the measured crossover of this machine's packed kernels beside their self-tests."""
    path = _crossover_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"tokens": tokens}))
    partial.replace(path)


def known_crossover(folder: Path) -> int:
    """The crossover that was measured here, else CROSSOVER_TOKENS."""
    path = _crossover_path(folder)
    return int(json.loads(path.read_text())["tokens"]) if path.is_file() else CROSSOVER_TOKENS


def _crossover_path(folder: Path) -> Path:
    return folder / "kernels" / f"crossover-{layout_key('torch_int4')}.json"


def probe_support(
    parts: Sequence[Part], group_size: int, dtype: torch.dtype, folder: Path
) -> KernelSupport:
    """Self-test torch's kernels for these shapes in a child process, once a machine.

    folder: where results are remembered. A child that crashes means: not supported.
    """
    shapes = sorted({(p.rows, p.columns) for p in parts if p.kind == "matrix"})
    name = str(dtype).removeprefix("torch.")
    key = f"{layout_key('torch_int4')}-g{group_size}-{name}-" + "-".join(
        f"{rows}x{columns}" for rows, columns in shapes
    )
    path = folder / "kernels" / f"{key}.json"
    if path.is_file():
        return KernelSupport(**json.loads(path.read_text()))
    results = {
        kernel: _passes_in_child(kernel, shapes, group_size, name) for kernel in ("int4", "int8")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results))
    partial.replace(path)
    return KernelSupport(**results)


def self_test(kernel: str, shapes: Sequence[tuple[int, int]], group_size: int, dtype: str) -> bool:
    """Compare one kernel with the dequantized reference on every shape, at 1 and 5 tokens.

    Runs in a child process, since a kernel may crash on a shape it does not support.
    """
    from engine.experts.codec import RecordFormat, encode, matrix_view
    from engine.records import record_layout

    bits: Bits = 4 if kernel == "int4" else 8
    support = KernelSupport(int4=True, int8=True)
    generator = torch.Generator().manual_seed(0)
    for rows, columns in shapes:
        if bits == 4 and (group_size < 32 or columns % group_size or rows % 16):
            return False
        part = Part("weight", (rows, columns))
        layout = record_layout((part,), bits, group_size)
        record = RecordFormat((part,), layout, torch.bfloat16, "torch_int4")
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        view = matrix_view(encode({"weight": weight}, record), record, part)
        multiply = Multiplier(bits, group_size, "torch_int4", support, "auto")
        from engine.experts.quantization import quantize

        reference = dequantize(quantize(weight, bits, group_size), bits, group_size)
        if can_unpack(rows, "torch_int4") and not torch.equal(
            multiply.dequantized(view, torch.float32), reference
        ):
            return False
        for tokens in (1, 5):
            x = torch.randn(tokens, columns, generator=generator).to(getattr(torch, dtype))
            expected = x.float() @ reference.t()
            error = (multiply(x, view).float() - expected).abs().max() / expected.abs().max()
            if not error < _TOLERANCE:
                return False
    return True


def _passes_in_child(
    kernel: str, shapes: Sequence[tuple[int, int]], group_size: int, dtype: str
) -> bool:
    arguments = json.dumps([kernel, shapes, group_size, dtype])
    try:
        child = subprocess.run(
            [sys.executable, "-m", "engine.experts.kernels", arguments],
            capture_output=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def _main() -> int:
    kernel, shapes, group_size, dtype = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    return 0 if self_test(kernel, [tuple(shape) for shape in shapes], group_size, dtype) else 1


if __name__ == "__main__":
    sys.exit(_main())
