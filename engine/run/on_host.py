"""What the host has to know of a layer: copied from the device with one wait, and looked up.

Letters: T tokens, t of them in one micro-batch, K chosen experts, E experts, D hidden.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.device.base import Device, Event
from engine.run.time_split import PhaseClock

_ALIGN_BYTES = 64


@dataclass(frozen=True)
class OnHost:
    """Of a layer's tokens: index [t, K]; weights [t, K] and scores [t, E], None unless somebody
    needs them; hidden [t, D], None unless the host computes."""

    index: torch.Tensor
    weights: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    hidden: torch.Tensor | None = None

    def split(self, sizes: Sequence[int]) -> list[OnHost]:
        """Of micro-batches of these many tokens."""
        whole = self.index, self.weights, self.scores, self.hidden
        parts = [
            itertools.repeat(None) if one is None else torch.split(one, list(sizes))
            for one in whole
        ]
        return [OnHost(*own) for own in itertools.islice(zip(*parts, strict=False), len(sizes))]


class HostCopies:
    """Reads device tensors on the host: all of one call together, through pinned memory.

    clock: the host waits for all that the device still has to do. That time is charged to what the
    device did: what surrounds this layer's experts, and before it the experts of the layer before.
    """

    def __init__(self, device: Device, clock: PhaseClock) -> None:
        self._device = device
        self._clock = clock
        self._experts_done: Event | None = None
        self._staging = torch.empty(0, dtype=torch.uint8)

    def read(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors in host memory, each of its own; themselves on a device that is host memory.

        Queues a copy of each behind all work so far and waits once, for the last.
        """
        if self._device.is_host_memory:
            return list(tensors)
        sizes = [-(-t.nbytes // _ALIGN_BYTES) * _ALIGN_BYTES for t in tensors]
        starts = [0, *itertools.accumulate(sizes)]
        if self._staging.numel() < starts[-1]:
            self._staging = self._device.allocate_staging(1 << (starts[-1] - 1).bit_length())
        views = [
            self._staging[start : start + t.nbytes].view(t.dtype).view(t.shape)
            for start, t in zip(starts, tensors, strict=False)
        ]
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor, non_blocking=True)
        self._wait(self._device.timestamp())
        return [view.clone() for view in views]

    def experts_queued(self) -> None:
        """All experts of a layer are queued."""
        if not self._device.is_host_memory:
            self._experts_done = self._device.timestamp()

    def pass_ended(self) -> None:
        """All of a pass is queued. Whoever reads its logits waits for the device anyway; here the
        time is known to be the device's."""
        if not self._device.is_host_memory:
            self._wait(self._device.timestamp())
            self._experts_done = None

    def _wait(self, copied: Event) -> None:
        before = self._clock.switch("non_expert")
        earlier_s = self._clock.seconds["non_expert"]
        copied.synchronize()
        self._clock.switch(before)
        if self._experts_done is not None:
            waited_s = self._clock.seconds["non_expert"] - earlier_s
            beside_s = self._device.elapsed_s(self._experts_done, copied)
            self._clock.move(max(0.0, waited_s - beside_s), "non_expert", "compute")


class Places:
    """Indices in [T*K] of each expert's tokens, in routing order, found when they are asked for.

    index: [T, K], on the host; count: of experts; beyond them there are none.
    """

    def __init__(self, index: torch.Tensor, count: int) -> None:
        self._index = index
        self._count = count

    def of(self, expert: int) -> torch.Tensor:
        """int64 [t], on the host."""
        if self._index.shape[0] == 1:
            return (self._index[0] == expert).nonzero()[:, 0]
        return self._by_expert[expert]

    @functools.cached_property
    def _by_expert(self) -> Sequence[torch.Tensor]:
        flat = self._index.reshape(-1)
        order = torch.argsort(flat, stable=True)
        sizes = torch.bincount(flat, minlength=self._count + 1).tolist()
        ends = list(itertools.accumulate(sizes))
        return torch.tensor_split(order, ends[:-1])


def join_on_host(known: Sequence[OnHost | None]) -> OnHost:
    """All micro-batches together, without what only the policy is told."""
    routed = [one for one in known if one is not None]
    assert len(routed) == len(known), "a call that was not routed"
    if len(routed) == 1:
        return routed[0]
    hidden = [one.hidden for one in routed if one.hidden is not None]
    index = torch.cat([one.index for one in routed])
    return OnHost(index, hidden=torch.cat(hidden) if hidden else None)
