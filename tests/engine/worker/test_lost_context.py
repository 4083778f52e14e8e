"""A worker whose accelerator computes no more ends with its answer; out of memory is no reason."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.errors import EngineError
from engine.worker.lost_context import lost_context
from tuner.engine_client.process import EngineWorker
from tuner.errors import WorkerError

LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nSearch for ..."),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA driver error: misaligned address"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("HIP error: device-side assert triggered"),
]
KEPT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    EngineError("no CUDA error: the config is impossible"),
    ValueError("CUDA error: so a file says"),
]


@pytest.mark.parametrize("error", LOST, ids=str)
def test_what_loses_the_context_is_told_by_its_first_line(error: Exception) -> None:
    assert lost_context(error) == str(error).partition("\n")[0]


@pytest.mark.parametrize("error", KEPT, ids=str)
def test_everything_else_keeps_it(error: Exception) -> None:
    assert lost_context(error) is None


def test_an_error_that_was_raised_from_it_or_while_handling_it_tells_too() -> None:
    later = EngineError("the pass is incomplete")
    later.__cause__ = LOST[0]
    again = KeyError("slot")
    again.__context__ = later
    later.__context__ = again  # a circle ends
    assert lost_context(again) == "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[EngineWorker]:
    command = (sys.executable, "-m", "tests.fakes.failing_worker")
    with EngineWorker(tmp_path / "worker.log", command) as started:
        yield started


@pytest.mark.parametrize("operation", ["lose", "lose_while_closing"])
def test_the_process_is_gone_before_the_next_request(worker: EngineWorker, operation: str) -> None:
    expected = r"context was lost \(CUDA error: .*so this worker"
    with pytest.raises(WorkerError, match=expected) as lost:
        worker.request(operation)
    assert lost.value.failure == "crash"
    assert not worker.alive
    with pytest.raises(WorkerError, match="not running"):
        worker.request("pid")


def test_out_of_memory_keeps_the_process(worker: EngineWorker) -> None:
    process = worker.request("pid")["pid"]
    with pytest.raises(WorkerError) as full:
        worker.request("fill")
    assert full.value.failure == "out_of_memory"
    assert worker.request("pid")["pid"] == process
