"""Computes experts on the host, next to the host tier: activations move instead of weights.

One host thread multiplies a record in place in host memory (MoNDE, arXiv 2405.18832; on a commodity
machine the memory-side processor is a CPU core). On an emulated machine each product takes at least
as long as that machine's host memory would need to read the record.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from engine.device.pages import allocate_pages, bytes_view
from engine.experts.kernels.multiplier import Product
from engine.experts.slots import ExpertView, expert_view
from engine.experts.tiers.host import HostTier
from engine.types import Bits, ExpertId

ExpertFunction = Callable[[Any, Product, ExpertView, torch.Tensor], torch.Tensor]


class HostCompute:
    """One thread that runs experts from the host tiers, in the order they are submitted.

    tiers, multipliers: by bits; run: the expert's function; bytes_per_s: memory read rate of the
    emulated host, None: not emulated.
    """

    def __init__(
        self,
        tiers: Mapping[Bits, HostTier],
        multipliers: Mapping[Bits, Product],
        run: ExpertFunction,
        bytes_per_s: float | None,
    ) -> None:
        self._tiers = dict(tiers)
        self._multipliers = dict(multipliers)
        self._run = run
        self._bytes_per_s = bytes_per_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-host")
        size = max(tier.scratch_bytes() for tier in tiers.values())
        self._scratch = bytes_view(allocate_pages(size))
        self.busy_s = 0.0
        self.computed_bytes = 0

    def submit(
        self, module: Any, expert: ExpertId, bits: Bits, x: torch.Tensor
    ) -> Future[torch.Tensor]:
        """Compute this expert of `module` on x [t, D]; the result lies in host memory."""
        return self._thread.submit(self._compute, module, expert, bits, x.to("cpu"))

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    @torch.inference_mode()
    def _compute(self, module: Any, expert: ExpertId, bits: Bits, x: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        tier = self._tiers[bits]
        with tier.borrow(expert, self._scratch) as raw:
            out = self._run(module, self._multipliers[bits], expert_view(raw, tier.record), x)
        if self._bytes_per_s is not None:
            least = tier.record.size_bytes / self._bytes_per_s
            rest = started + least - time.perf_counter()
            if rest > 0:
                time.sleep(rest)
        self.busy_s += time.perf_counter() - started
        self.computed_bytes += tier.record.size_bytes
        return out
