"""Finds the kernels that work on this machine for a model's matrices.

It checks shapes, availability and a self-test. The self-test runs in a child process, since a
kernel may crash on an unsupported shape; its result is kept on disk. A kernel that fails is
reported in one log line, and dequantization is used instead.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from engine.derived.file import DerivedKind, load_json, save_json
from engine.device.accelerator import bind_thread_to
from engine.experts.encoding.codec import CodeLayout, RecordFormat, can_unpack, encode, matrix_view
from engine.experts.encoding.quantization import dequantize, quantize
from engine.experts.kernels.base import Kernel, MatrixShape
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.registry import KERNELS, KernelSupport
from engine.layout.record import Part, record_layout
from engine.types import Bits, KernelName

SELF_TEST = DerivedKind("self-test of a kernel", 1, "it is run again")
_TOLERANCE = 0.02
_PATIENCE_S = 120
_log = logging.getLogger(__name__)


def probe_support(
    parts: Sequence[Part],
    bits: Bits,
    group_size: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
    wanted: KernelName = "auto",
) -> KernelSupport:
    """The kernels that work for all matrices of a record with codes of these bits.

    folder: where the results of self-tests are kept. A child that crashes or hangs counts as a
    failure. wanted: a kernel's name if that one is meant; else what is less preferred than one that
    works is not tried.
    """
    shapes = sorted({(p.rows, p.columns) for p in parts if p.kind == "matrix"})
    held: list[str] = []
    refusals: dict[str, str] = {}
    tried: list[str] = []
    for name, factory in KERNELS.items():
        kernel = factory()
        if bits not in kernel.reads:
            read = ", ".join(map(str, kernel.reads))
            refusals[name] = f"it reads codes of {read} bits, not of {bits}"
            continue
        why = kernel.unavailable(device)
        if why is None and held and name != wanted:
            why = f"it was not tried: {held[0]} is preferred"
        elif why is None:
            tried.append(name)
            why = first_refusal(kernel, shapes, group_size, dtype)
            if why is None and not kernel.tested:
                why = _failure(kernel, shapes, group_size, dtype, device, folder)
        if why is None:
            held.append(name)
        else:
            refusals[name] = why
    if tried and not held:
        reasons = "; ".join(f"{name}: {refusals[name]}" for name in tried)
        _log.warning("products with %d-bit codes dequantize first (slower): %s", bits, reasons)
    return KernelSupport(tuple(held), refusals)


def first_refusal(
    kernel: Kernel, shapes: Sequence[tuple[int, int]], group_size: int, dtype: torch.dtype
) -> str | None:
    """Why a kernel does not take one of these matrices [(N, K)]; None if it takes all."""
    for rows, columns in shapes:
        if why := kernel.refuses(MatrixShape(rows, columns, group_size), dtype):
            return why
    return None


def layout_key(code_layout: CodeLayout) -> str:
    """Key of everything that the packed bytes depend on besides the quantization itself."""
    if code_layout == "plain":
        return "plain"
    torch_version = ".".join(torch.__version__.split(".")[:2])
    if code_layout == "cuda_int4":
        return f"cuda-int4-torch{torch_version}"
    capability = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "")
    return f"int4-{capability}-torch{torch_version}"


def self_test(
    kernel: Kernel,
    shapes: Sequence[tuple[int, int]],
    group_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Compare a kernel with the dequantized reference on every shape [(N, K)], at 1 and 5 tokens
    that lie together and apart, as slices of a batch do.

    Returns what was wrong. Runs in a child process, since a kernel may crash.
    """
    generator = torch.Generator().manual_seed(0)
    support = KernelSupport((kernel.name,))
    for rows, columns in shapes:
        part = Part("weight", (rows, columns))
        bits = kernel.reads[0]
        layout = record_layout((part,), bits, group_size)
        record = RecordFormat((part,), layout, torch.bfloat16, kernel.code_layout)
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        data = encode({"weight": weight}, record).to(device)
        view = matrix_view(data, record, part)
        multiply = Multiplier(bits, group_size, kernel.code_layout, support, "auto")
        reference = dequantize(quantize(weight, bits, group_size), bits, group_size)
        readable = bits == 8 or can_unpack(rows, kernel.code_layout)
        if readable and not torch.equal(multiply.dequantized(view).cpu(), reference):
            return f"codes of {rows} x {columns} do not lie as expected"
        for tokens, apart in ((1, 1), (5, 1), (1, 3), (5, 3)):
            batch = torch.randn(tokens, apart, columns, generator=generator).to(dtype)
            x = batch.to(device)[:, -1]  # [T, K], rows `apart` rows apart
            expected = batch[:, -1].float() @ reference.t()
            found = multiply(x, view)
            error = float((found.cpu().float() - expected).abs().max() / expected.abs().max())
            where = f"{rows} x {columns} at {tokens} tokens"
            if found.dtype != dtype:
                return f"{where} gives {found.dtype}, not {dtype}"
            if not error < _TOLERANCE:
                return f"{where} errs by {error:.2g}"
    return None


def _failure(
    kernel: Kernel,
    shapes: Sequence[tuple[int, int]],
    group_size: int,
    dtype: torch.dtype,
    device: torch.device,
    folder: Path,
) -> str | None:
    """The result of the self-test. It runs once per machine; a failure by memory or time, which
    another day does not repeat, is not remembered."""
    name = str(dtype).removeprefix("torch.")
    key = "-".join(
        (
            kernel.name,
            place_key(device),
            f"g{group_size}",
            name,
            *(f"{rows}x{columns}" for rows, columns in shapes),
        )
    )
    path = folder / "kernels" / f"{key}.json"
    return kept_outcome(path, lambda: _test_in_child(kernel.name, shapes, group_size, name, device))


def kept_outcome(path: Path, test: Callable[[], tuple[str | None, bool]]) -> str | None:
    """The failure of a self-test, None if there is none, kept in this file. test: returns it and
    whether it would be the same another time."""
    known = load_json(path, SELF_TEST, _known_outcome)
    if known is not None:
        return known[0]
    found, lasting = test()
    if lasting:
        save_json(path, SELF_TEST, {"failure": found})
    return found


def place_key(device: torch.device) -> str:
    """Names what a self-test ran on, for its file: device, processor, torch's release."""
    place = device.type
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device).replace(" ", "_")
    return f"{place}-{layout_key('torch_int4')}"


def _known_outcome(kept: Mapping[str, str | None]) -> tuple[str | None]:
    failure = kept["failure"]
    if not isinstance(failure, str | None):
        raise TypeError("the failure is no sentence")
    return (failure,)


def _test_in_child(
    kernel: str,
    shapes: Sequence[tuple[int, int]],
    group_size: int,
    dtype: str,
    device: torch.device,
) -> tuple[str | None, bool]:
    arguments = json.dumps([kernel, shapes, group_size, dtype, str(device)])
    return run_in_child("engine.experts.kernels.probe", arguments)


def run_in_child(module: str, arguments: str) -> tuple[str | None, bool]:
    """Run a module whose output is a failure or null as JSON. Returns the failure, None if there is
    none, and whether it would be the same another time."""
    try:
        child = subprocess.run(
            [sys.executable, "-m", module, arguments],
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return f"its self-test did not end within {_PATIENCE_S} s", False
    if child.returncode == 0:
        found: str | None = json.loads(child.stdout)
        return found, True
    last = child.stderr.strip().splitlines()[-1:] or [f"exit {child.returncode}"]
    short_of_memory = "memory" in child.stderr.lower() or "alloc" in child.stderr.lower()
    lasting = not short_of_memory and child.returncode not in (-signal.SIGKILL, -signal.SIGTERM)
    return f"its self-test broke off ({last[0]})", lasting


def _main() -> int:
    kernel, shapes, group_size, dtype, device = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    bind_thread_to(torch.device(device))
    found = self_test(
        KERNELS[kernel](),
        [(rows, columns) for rows, columns in shapes],
        group_size,
        getattr(torch, dtype),
        torch.device(device),
    )
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
