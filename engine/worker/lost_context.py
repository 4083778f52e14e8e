"""Errors after which an accelerator's context computes no more in this process.

CUDA's context is lost after an illegal address, a device-side assertion, a failed launch or an
uncorrectable ECC error: every later call fails with the same error, so only a new process helps.
Other errors of a driver are taken for one of these, which costs a restart; out of memory is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_LOST = re.compile(
    r"(CUDA|HIP|XPU)( driver)? error|Triton Error"
    r"|CU(BLAS|SPARSE|SOLVER)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
    r"|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"
    r"|illegal (memory access|address|instruction)|device-side assert"
    r"|unspecified launch failure|misaligned address|uncorrectable ECC",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"out of memory|ALLOC_FAILED|cudaErrorMemoryAllocation", re.IGNORECASE)
_ACCELERATOR_ERROR: type[Exception] = getattr(torch, "AcceleratorError", torch.OutOfMemoryError)


def lost_context(error: BaseException) -> str | None:
    """The first line of the error that cost this process its accelerator, None if none did.

    Also looks at the errors that it was raised from, or while handling.
    """
    for one in _chain(error):
        text = str(one)
        known = isinstance(one, _ACCELERATOR_ERROR) or (
            isinstance(one, RuntimeError) and _LOST.search(text) is not None
        )
        if known and not isinstance(one, torch.OutOfMemoryError) and not _MEMORY.search(text):
            return text.strip().partition("\n")[0]
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]
