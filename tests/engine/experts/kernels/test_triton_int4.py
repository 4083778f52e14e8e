"""The grouped int4 product: values against plain torch, what it refuses, and that it compiles.

What multiplies is marked `triton`: on the CPU it needs TRITON_INTERPRET=1 from the start, on CUDA
the same tests run compiled.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch

from engine.experts.encoding.codec import RecordFormat, encode, matrix_view
from engine.experts.kernels.base import MatrixShape
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.probe import self_test
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.experts.kernels.triton_int4 import (
    SlotMatrix,
    TritonInt4,
    grouped_int4,
    grouped_reference,
)
from engine.layout.record import Part, record_layout

# Of the largest value: what it costs to cut the result off to the dtype (the interpreter does not
# round), in float32 what another order of summing costs. Scales, zeros and sums stay in float32.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def device() -> torch.device:
    """Where triton can run here."""
    pytest.importorskip("triton", reason="needs the extra gpu")
    if os.environ.get("TRITON_INTERPRET") == "1":
        return CPU
    if torch.cuda.is_available():
        return torch.device("cuda")
    pytest.skip("without CUDA it needs TRITON_INTERPRET=1")


def make_record(rows: int, columns: int, group: int) -> RecordFormat:
    """A record with two matrices, of which the tests multiply the second, `down`."""
    parts = (Part("up", (32, 256)), Part("down", (rows, columns)), Part("down_bias", (rows,)))
    return RecordFormat(parts, record_layout(parts, 4, group), torch.bfloat16, "plain")


def make_arena(record: RecordFormat, slots: int) -> tuple[torch.Tensor, SlotMatrix]:
    """An arena of slots, each with an expert and a page to spare, and where `down` lies."""
    generator = torch.Generator().manual_seed(slots)
    slot_bytes = record.size_bytes + 4096
    arena = torch.full((slots * slot_bytes,), 0xFF, dtype=torch.uint8)  # scales of NaN
    for slot in range(slots):
        tensors = {
            part.name: torch.randn(part.shape, generator=generator) / part.shape[-1] ** 0.5 + 0.01
            for part in record.parts
        }
        arena[slot * slot_bytes :][: record.size_bytes] = encode(tensors, record)
    return arena, SlotMatrix.of(record, record.parts[1], slot_bytes)


def check_against_reference(
    rows: int,
    columns: int,
    group: int,
    slots: Sequence[int],
    counts: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """counts: tokens of each expert, in the order of `slots`."""
    arena, matrix = make_arena(make_record(rows, columns, group), max(slots) + 1)
    x = torch.randn(sum(counts), columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    row_starts = torch.tensor([0, *counts]).cumsum(0)
    arguments = arena, matrix, torch.tensor(slots), row_starts
    expected = grouped_reference(x, *arguments)
    arena, slot_of = arena.to(device), torch.tensor(slots, device=device)
    found = grouped_int4(x.to(device), arena, matrix, slot_of, row_starts.to(device))
    assert found.dtype == dtype
    assert found.shape == (sum(counts), rows)
    assert_close(found.cpu(), expected)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """expected: float32."""
    if expected.numel() == 0:
        return
    error = (found.float() - expected).abs().max()
    assert error <= TOLERANCES[found.dtype] * expected.abs().max()


@pytest.mark.triton
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256])
def test_products_equal_the_reference_for_every_group_and_dtype(
    group: int, dtype: torch.dtype, device: torch.device
) -> None:
    check_against_reference(96, 512, group, [2, 0, 1], [3, 17, 1], dtype, device)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "group", "slots", "counts"),
    [
        (128, 2880, 32, [1, 0], [2, 1]),  # gpt-oss: no power of two
        (40, 2880, 64, [0], [1]),
        (65, 64, 32, [3, 1], [4, 5]),  # one row beyond a tile
        (1, 64, 16, [0], [2]),
        (7, 32, 32, [0, 2, 1], [16, 15, 17]),  # tokens around a tile
        (64, 128, 64, [0], [1]),
        (64, 128, 64, [1], [150]),
        (64, 128, 64, [2, 4, 0, 3, 1], [0, 9, 0, 33, 0]),
        (64, 128, 64, [0, 1], [0, 0]),
        (64, 64, 32, [5, 5, 0], [1, 2, 3]),  # a slot twice
        (48, 64, 32, list(range(37))[::-1], [1, 0, 2] * 12 + [5], ),
    ],
)  # fmt: skip
def test_products_equal_the_reference_for_odd_shapes_and_spreads(
    rows: int,
    columns: int,
    group: int,
    slots: list[int],
    counts: list[int],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    check_against_reference(rows, columns, group, slots, counts, dtype, device)


@pytest.mark.triton
def test_a_slot_beyond_two_gibibytes_is_reached(device: torch.device) -> None:
    record = make_record(32, 64, 32)
    one, matrix = make_arena(record, 1)
    far = SlotMatrix(matrix.shape, 1 << 30, matrix.codes_offset, matrix.scales_offset)
    arena = torch.empty((3 << 30) + record.size_bytes, dtype=torch.uint8, device=device)
    arena[3 << 30 :] = one[: record.size_bytes].to(device)
    x = torch.randn(2, 64)
    row_starts = torch.tensor([0, 2])
    slots = torch.tensor([3], device=device)
    found = grouped_int4(x.to(device), arena, far, slots, row_starts.to(device)).cpu()
    expected = grouped_reference(x, one, matrix, torch.tensor([0]), row_starts)
    assert_close(found, expected)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 5, 40])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_the_kernel_multiplies_like_the_dequantized_matrix(
    bits: int, tokens: int, dtype: torch.dtype, device: torch.device
) -> None:
    part = Part("w", (72, 96))
    record = RecordFormat((part,), record_layout((part,), bits, 32), torch.bfloat16, "plain")
    weight = torch.randn(72, 96, generator=torch.Generator().manual_seed(bits))
    view = matrix_view(encode({"w": weight}, record).to(device), record, part)
    x = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    held = KernelSupport(("triton_int4",))
    found = Multiplier(bits, 32, "plain", held, "triton_int4")(x.to(device), view).cpu()
    whole = Multiplier(bits, 32, "plain", NO_KERNELS, "dequantize").dequantized(view).cpu()
    expected = x.float() @ whole.t()
    assert found.dtype == dtype
    assert found.shape == (tokens, 72)
    assert_close(found, expected)


@pytest.mark.triton
def test_its_self_test_holds(device: torch.device) -> None:
    kernel = TritonInt4()
    assert kernel.unavailable(device) is None
    assert self_test(kernel, [(40, 64), (64, 96)], 32, torch.bfloat16, device) is None


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from engine.experts.kernels.triton_program import grouped_int4_program

cases = (("bf16", 16, 80), ("bf16", 64, 90), ("fp16", 32, 80), ("fp32", 32, 80))
for dtype, group, capability in cases:
    pointers = dict(x=dtype, codes="u8", scales="bf16", slots="i64", row_starts="i64", out=dtype)
    chosen = dict(group_size=group, expert_places=4, tile_tokens=16, tile_rows=64,
                  step_columns=group, widen=False)
    signature = {name: f"*{kind}" for name, kind in pointers.items()}
    signature |= dict.fromkeys(("experts", "rows", "columns"), "i32") | {"slot_bytes": "i64"}
    signature |= dict.fromkeys(chosen, "constexpr")
    source = ASTSource(grouped_int4_program, signature, chosen)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert binary.asm["cubin"]
    assert dtype == "fp32" or "mma.sync" in binary.asm["ptx"], "it would not use tensor cores"
"""


@pytest.mark.triton
def test_it_compiles_for_cuda_without_a_gpu() -> None:
    pytest.importorskip("triton", reason="needs the extra gpu")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    child = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr[-2000:]


def test_it_runs_on_cuda_only_unless_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = TritonInt4()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernel.unavailable(CPU) == "it runs on CUDA, not on cpu"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert kernel.unavailable(torch.device("meta")) == "it runs on CUDA, not on meta"
    monkeypatch.setitem(sys.modules, "triton", None)
    for device in (CPU, torch.device("cuda")):
        reason = kernel.unavailable(device)
        assert reason is not None
        assert device.type in reason
        assert "extra gpu" in reason


@pytest.mark.parametrize(
    ("shape", "dtype", "word"),
    [
        (MatrixShape(64, 96, 48), torch.bfloat16, "groups of 48 are no power of two"),
        (MatrixShape(64, 64, 8), torch.bfloat16, "groups of 8"),
        (MatrixShape(64, 80, 32), torch.bfloat16, "80 columns are no multiple of the group 32"),
        (MatrixShape(1 << 17, 1 << 15, 32), torch.bfloat16, "2 GiB"),
        (MatrixShape(64, 64, 32), torch.float64, "not float64"),
        (MatrixShape(1, 2880, 64), torch.float16, None),
        (MatrixShape(5760, 2880, 32), torch.float32, None),
    ],
)
def test_what_it_does_not_take_is_said_in_words(
    shape: MatrixShape, dtype: torch.dtype, word: str | None
) -> None:
    reason = TritonInt4().refuses(shape, dtype)
    assert reason is None if word is None else reason is not None and word in reason
