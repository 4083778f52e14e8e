"""What the calls of a native pass read and write.

Letters: B sequences, T = B tokens, D hidden, E experts, K chosen ones, L layers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from engine.native import library
from engine.native.values import Front, Layers, Store
from engine.run.moe_layers import Ready
from engine.run.native_router import NativeRouter
from engine.run.native_step import fill_stores


class Buffers:
    """Room for what the calls of layers write, for B sequences.

    residuals: of layers with even and with odd numbers, [B, 1, D], since a layer reads what the
    former one wrote; normed, flat: what the router and the experts of the present layer read,
    [B, 1, D] and [T, D]; logits [T, E] and weights [T, K]: of its router; index: of all layers,
    [L, T, K].
    """

    def __init__(
        self,
        owner: object,
        fronts: ctypes.Array[Front],
        hidden: torch.Tensor,
        router: NativeRouter | None,
    ) -> None:
        self.owner = owner
        count = len(fronts)
        self.residuals = torch.empty_like(hidden), torch.empty_like(hidden)
        self.normed = torch.empty_like(hidden)
        self.flat = self.normed.view(-1, hidden.shape[-1])
        nothing = hidden.new_empty(0)
        buffers = (nothing, nothing, nothing) if router is None else router.buffers(self.flat)
        self.logits, self.weights, index = buffers
        self.index = index.new_empty(count, *index.shape)
        self._stores = (Store * (count * len(hidden)))()
        self.values = Layers(
            count=count,
            tokens=len(hidden),
            fronts=ctypes.addressof(fronts),
            stores=ctypes.addressof(self._stores),
            normed=self.normed.data_ptr(),
            logits=self.logits.data_ptr(),
            weights=self.weights.data_ptr(),
            index=self.index.data_ptr(),
        )
        self.values.residuals[:] = [residual.data_ptr() for residual in self.residuals]
        self._held: tuple[Any, ...] = ()
        self._caches: Sequence[Any] = ()

    def begin(
        self,
        hidden: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        caches: Sequence[Any],
    ) -> None:
        """A pass begins: hidden [B, 1, D], cosine and sine [B or 1, 1, d], caches of all B."""
        self._held, self._caches = (hidden, cosine, sine), caches
        values = self.values
        values.x, values.cosine, values.sine = (held.data_ptr() for held in self._held)
        values.stride = cosine.stride(0) if len(cosine) > 1 else 0
        end = 0
        for layer in zip(*(cache.layers for cache in caches), strict=True):
            for own in layer:
                end = fill_stores(self._stores, end, own)

    def end(self) -> None:
        """The pass has ended: keys and values of other sequences are no longer held from here."""
        self._held, self._caches = (), ()

    def run_front(self, number: int) -> None:
        """Run a layer up to its router."""
        self.values.records = 0
        self._run(number)

    def run_ready(self, first: int, ready: Ready) -> int:
        """Run layers from `first` on. Returns the layer that lacks a record; its router has run."""
        values = self.values
        values.experts, values.experts_s = ctypes.addressof(ready.experts), 0.0
        values.records, values.experts_of_layer = ready.records.place, ready.records.experts
        return self._run(first)

    def _run(self, first: int) -> int:
        values = self.values
        values.first = first
        if first != 0:
            values.x = values.residuals[(first - 1) % 2]
        reached = library.current().layers(values)
        for cache in self._caches:
            for layer in cache.layers[first : reached + 1]:
                layer.grown()
        return reached
