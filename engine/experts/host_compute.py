"""Computes experts on the host, next to the host tier: activations move instead of weights.

One host thread multiplies records in place in host memory (MoNDE, arXiv 2405.18832; on a commodity
machine the memory-side processor is a CPU core): those of a layer in one native call, over all
cores, where there is one. On an emulated machine they take at least as long as that machine's host
memory would need to read the records.

Letters: T tokens, K chosen experts, D hidden, R rows of the T * K that the host computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch

from engine.device.pages import allocate_pages, bytes_view
from engine.experts.kernels.multiplier import Product
from engine.experts.kernels.native_experts import NativeExperts
from engine.experts.slots import ExpertView, expert_view
from engine.experts.tiers.host import HostTier
from engine.types import Bits, ExpertId

ExpertFunction = Callable[[Any, Product, ExpertView, torch.Tensor], torch.Tensor]
Computed = tuple[torch.Tensor, torch.Tensor]
"""Rows of the output, int64 [R], and what they hold, [R, D], in host memory."""


class HostCompute:
    """One thread that runs experts from the host tiers, in the order they are submitted.

    tiers, multipliers: by bits; run: the expert's function; fused: native calls of this thread's
    own; bytes_per_s: memory read rate of the emulated host, None: not emulated.
    """

    def __init__(
        self,
        tiers: Mapping[Bits, HostTier],
        multipliers: Mapping[Bits, Product],
        run: ExpertFunction,
        fused: NativeExperts | None,
        bytes_per_s: float | None,
    ) -> None:
        self._tiers = dict(tiers)
        self._multipliers = dict(multipliers)
        self._run = run
        self._fused = fused
        self._bytes_per_s = bytes_per_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="expert-host")
        size = max(tier.scratch_bytes() for tier in tiers.values())
        self._scratch = bytes_view(allocate_pages(size))
        self.busy_s = 0.0
        self.computed_bytes = 0

    def submit(
        self,
        module: Any,
        experts: Sequence[tuple[ExpertId, Bits]],
        hidden: torch.Tensor,
        index: torch.Tensor,
    ) -> Future[Computed]:
        """Compute these experts of `module`, of one layer, for the tokens that chose them.

        hidden [T, D], index int64 [T, K]: both in host memory.
        """
        return self._thread.submit(self._compute, module, experts, hidden, index)

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown()

    @torch.inference_mode()
    def _compute(
        self,
        module: Any,
        experts: Sequence[tuple[ExpertId, Bits]],
        hidden: torch.Tensor,
        index: torch.Tensor,
    ) -> Computed:
        started = time.perf_counter()
        hidden, index = hidden.contiguous(), index.contiguous()
        rows = {
            expert: (index.view(-1) == expert.expert).nonzero()[:, 0] for expert, _ in experts
        }  # [t] each
        out = hidden.new_zeros(index.numel(), hidden.shape[1])  # [T * K, D]
        with ExitStack() as borrowed:
            together: dict[Bits, dict[int, int]] = {}
            for expert, bits in experts:
                raw = borrowed.enter_context(self._tiers[bits].borrow(expert, self._scratch))
                if self._fused and len(rows[expert]) <= self._fused.most_tokens.get(bits, 0):
                    together.setdefault(bits, {})[expert.expert] = raw.data_ptr()
                    continue
                view = expert_view(raw, self._tiers[bits].record)
                x = hidden[rows[expert] // index.shape[1]]  # [t, D]
                y = self._run(module, self._multipliers[bits], view, x)
                out[rows[expert]] = y.to(out.dtype)
            for bits, addresses in together.items():
                assert self._fused is not None
                self._fused.run(bits, addresses, hidden, index, out)
        self._account(started, experts)
        chosen = torch.cat([*rows.values()])
        return chosen, out[chosen]

    def _account(self, started: float, experts: Sequence[tuple[ExpertId, Bits]]) -> None:
        """Counts what was computed; on an emulated machine, waits for its slower memory."""
        read = sum(self._tiers[bits].record.size_bytes for _, bits in experts)
        if self._bytes_per_s is not None:
            rest = started + read / self._bytes_per_s - time.perf_counter()
            if rest > 0:
                time.sleep(rest)
        self.busy_s += time.perf_counter() - started
        self.computed_bytes += read
