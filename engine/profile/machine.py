"""Measures the speeds of this machine: disk by record size, memory, kernels by tokens."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from engine.derived.scratch import scratch_folder
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.pages import allocate_pages, bytes_view
from engine.errors import StorageError
from engine.experts.encoding.codec import MatrixView, RecordFormat, encode, matrix_view
from engine.experts.kernels.multiplier import Multiplier
from engine.experts.kernels.registry import NO_KERNELS, KernelSupport
from engine.experts.tiers.direct_io import DiskReader, Extent
from engine.facts.machine import MachineProfile
from engine.layout.record import Part, record_layout
from engine.native.library import is_available, multiplies_bytes, products_name
from engine.profile.interference import SHAPES, Interference, measure_interference
from engine.types import BITS, ActivationBits, Bits, product_key

_FILE_BYTES = 128 << 20
_RECORD_SIZES = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
_QUEUE_DEPTH = 2
_ROWS = _COLUMNS = 1024
_FEW_ROWS = _FEW_COLUMNS = 128
_GROUP = 64
_CROSSOVER_TOKENS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_COPIES = 8


def profile_machine(device: Device, folder: Path, support: KernelSupport) -> MachineProfile:
    """Measure this machine. folder: on the disk to measure (a file of 128 MiB, removed afterwards).

    Raises StorageError if that file cannot be written.
    """
    with _test_file(folder) as file:
        reads = {str(size): _read_speed(file, size) for size in _RECORD_SIZES}
        beside = _interference(device, file, support) if device.is_host_memory else {}
    host = _host_times() if device.torch_device.type != "cpu" else ({}, {})
    return MachineProfile(
        read_bytes_per_s=reads,
        memory_bytes_per_s=_memory_speed(),
        link_bytes_per_s=_link_speed(device) if not device.is_host_memory else None,
        kernel_ms=_kernel_times(device, support, _ROWS, _COLUMNS),
        small_kernel_ms=_kernel_times(device, support, _FEW_ROWS, _FEW_COLUMNS),
        crossover_tokens=_crossovers(device, support),
        products=products_name() if device.torch_device.type == "cpu" else "",
        busy_read_bytes_per_s={size: found.bytes_per_s for size, found in beside.items()},
        read_slowdown={size: found.slowdown for size, found in beside.items()},
        host_kernel_ms=host[0],
        host_small_kernel_ms=host[1],
    )


@contextlib.contextmanager
def _test_file(folder: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_folder(folder))
            file = stack.enter_context((scratch / "profile").open("wb"))
            block = os.urandom(1 << 20)
            for _ in range(_FILE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{folder} cannot hold a test file of 128 MiB: {error}") from None
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield Path(file.name)


def _interference(device: Device, file: Path, support: KernelSupport) -> dict[str, Interference]:
    """Measure reads beside products of 4-bit weights with one token, as in decoding."""
    found = {}
    for size, (rows, columns) in SHAPES.items():
        view, record = _encoded(4, support, device, rows, columns)
        multiply = Multiplier(4, _GROUP, record.code_layout, support, "auto")
        product = partial(multiply, torch.randn(1, columns).to(torch.bfloat16), view)
        found[str(size)] = measure_interference(device, file, size, product)
    return found


def _read_speed(file: Path, size: int) -> float:
    reader = DiskReader([file], "auto")
    count = min(256, _FILE_BYTES // size)
    stride = _FILE_BYTES // count // 4096 * 4096

    def read_part(part: int) -> None:
        target = bytes_view(allocate_pages(size))
        scratch = bytes_view(allocate_pages(4096))
        for number in range(part, count, _QUEUE_DEPTH):
            # a jumping stride, which defeats read-ahead
            place = number * 7919 % count
            reader.read(Extent(0, place * stride, 0, size), target, scratch)

    with ThreadPoolExecutor(_QUEUE_DEPTH) as pool:
        started = time.perf_counter()
        list(pool.map(read_part, range(_QUEUE_DEPTH)))
        seconds = time.perf_counter() - started
    reader.close()
    return count * size / seconds


def _memory_speed() -> float:
    source = torch.ones(64 << 20, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source))
    return 2 * source.numel() / seconds


def _link_speed(device: Device) -> float:
    source = device.allocate_staging(32 << 20)
    target = device.allocate_arena(32 << 20)

    def copy() -> None:
        device.copy(target, source, None).synchronize()

    return source.numel() / _best(copy)


def _host_times() -> tuple[dict[str, float], dict[str, float]]:
    """As _kernel_times of the processor, with a large and a small matrix."""
    support = KernelSupport(("native",)) if is_available() else NO_KERNELS
    cpu = CpuDevice()
    return (
        _kernel_times(cpu, support, _ROWS, _COLUMNS),
        _kernel_times(cpu, support, _FEW_ROWS, _FEW_COLUMNS),
    )


def _kernel_times(
    device: Device, support: KernelSupport, rows: int, columns: int
) -> dict[str, float]:
    """Milliseconds of one product with a matrix of this shape, by `product_key/tokens`."""
    times: dict[str, float] = {}
    for bits, rounding in _kinds(support):
        view, record = _encoded(bits, support, device, rows, columns)
        multiply = Multiplier(
            bits, _GROUP, record.code_layout, support, "auto", activation_bits=rounding
        )
        for tokens in (1, 2, 4, 16, 64, 256):
            x = torch.randn(tokens, columns).to(torch.bfloat16).to(device.torch_device)

            def run(x: torch.Tensor = x) -> None:
                multiply(x, view)  # noqa: B023 (called at once)
                device.synchronize()

            times[f"{product_key(bits, rounding)}/{tokens}"] = _best(run) * 1e3
    return times


def _kinds(support: KernelSupport) -> Iterator[tuple[Bits, ActivationBits]]:
    """Bits of codes, and of what they are multiplied by: 8 too where bytes are multiplied."""
    for bits in BITS:
        yield bits, 16
    if "native" in support.names and multiplies_bytes():
        yield from ((bits, 8) for bits in BITS if bits != 16)


def _encoded(
    bits: Bits, support: KernelSupport, device: Device, rows: int = _ROWS, columns: int = _COLUMNS
) -> tuple[MatrixView, RecordFormat]:
    """One encoded matrix of this shape at this precision, and its record format."""
    part = Part("weight", (rows, columns))
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    layout = record_layout((part,), bits, _GROUP)
    record = RecordFormat((part,), layout, torch.bfloat16, support.code_layout())
    data = encode({"weight": weight}, record).to(device.torch_device)
    return matrix_view(data, record, part), record


def _crossovers(device: Device, support: KernelSupport) -> dict[str, int]:
    """By product_key: the largest of _CROSSOVER_TOKENS up to which the packed product is faster
    than a GEMM with plain weights, dequantized as that kernel would; 0 if it never is. The weights
    come from memory, not from a cache: each product takes another copy."""
    found = {}
    for bits, rounding in _kinds(support):
        if support.kernel_for(bits) is None:
            continue
        record = _encoded(bits, support, device)[1]
        copies = [_encoded(bits, support, device)[0] for _ in range(_COPIES)]
        layout = record.code_layout
        packed, plain = (
            Multiplier(bits, _GROUP, layout, support, "auto", most, rounding)
            for most in (_CROSSOVER_TOKENS[-1], 0)
        )
        key = product_key(bits, rounding)
        found[key] = 0
        for tokens in _CROSSOVER_TOKENS:
            x = torch.randn(tokens, _COLUMNS).to(device.torch_device, torch.bfloat16)
            turns = [
                partial(_in_turn, device, multiply, x, itertools.cycle(copies))
                for multiply in (packed, plain)
            ]
            if _best(turns[0]) > _best(turns[1]):
                break
            found[key] = tokens
    return found


def _in_turn(
    device: Device, multiply: Multiplier, x: torch.Tensor, views: Iterator[MatrixView]
) -> None:
    multiply(x, next(views))
    device.synchronize()


def _best(function: Callable[[], object], repeats: int = 7) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
