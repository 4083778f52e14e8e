"""The chosen experts of a layer in a few launches on an accelerator.

Letters: T tokens, K chosen experts, P = T x K, E experts, D hidden.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine.config.settings import EngineConfig
from engine.experts.encoding.codec import RecordFormat
from engine.experts.kernels.activations import plain_gate, recognized_gate
from engine.experts.kernels.grouped.launch import (
    GROUPED_DTYPES,
    GroupedFormat,
    LayerRows,
    launch_experts,
    launch_sum,
)
from engine.experts.kernels.grouped.pinned_tables import PinnedTables
from engine.experts.kernels.grouped.probe import failed_self_test
from engine.experts.kernels.registry import KERNELS
from engine.experts.kernels.triton_int4 import TritonInt4
from engine.experts.slots import Slots
from engine.model.loader import LoadedModel
from engine.native.values import Experts
from engine.types import Bits, KernelName

_FEW_TOKENS = 16
"""Up to so many tokens what arrives late is computed together: launches cost more than waiting."""
_log = logging.getLogger(__name__)


class GroupedExperts:
    """Implements FusedExperts over the slots of an accelerator."""

    def __init__(self, formats: Mapping[Bits, GroupedFormat], slots: Slots, experts: int) -> None:
        """experts: of the layer that has most."""
        self._formats = dict(formats)
        self._slots = slots
        entries = experts + 1  # the last one: no expert
        self.most_tokens: Mapping[Bits, int] = dict.fromkeys(formats, 1 << 62)
        place = slots.device.torch_device
        self._bounds = torch.arange(entries + 1, device=place)
        self._offsets = torch.empty(entries, dtype=torch.int64, device=place)
        self._tables = PinnedTables(slots.device, entries)
        self._rows: LayerRows | None = None

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        config: EngineConfig,
        records: Mapping[Bits, RecordFormat],
        slots: Slots,
        folder: Path,
    ) -> GroupedExperts | None:
        """The launches for these records; None if no precision has them. folder: of self-tests.

        A precision for which another kernel was asked for by name, whose records no program reads,
        or whose self-test fails, is left to products by expert.
        """
        device, module = slots.device, model.layers[0].experts
        if device.is_host_memory or model.dtype not in GROUPED_DTYPES:
            return None
        if module.has_post_expert_norm or TritonInt4().unavailable(device.torch_device):
            return None
        gate = recognized_gate(module, model.dtype, plain_gate)
        if gate is None:
            return None
        formats = {}
        for bits, record in records.items():
            layout = GroupedFormat.of(record, gate, model.dtype)
            if layout is None or not _is_meant(config.kernel.name, bits):
                continue
            failure = failed_self_test(record, layout, model.dtype, device, folder)
            if failure is None:
                formats[bits] = layout
            else:
                _log.warning("%d-bit experts are computed one by one (slower): %s", bits, failure)
        count = max(layer.count for layer in model.layers)
        return cls(formats, slots, count) if formats else None

    def only(self, tokens: int) -> Experts | None:
        """None: no native call reads these records."""
        return None

    def most_waves(self, tokens: int) -> int | None:
        """What is there, then all the rest, if there is little to compute."""
        return 2 if tokens <= _FEW_TOKENS else None

    def begin(self, index: torch.Tensor) -> None:
        """Find the rows of every expert. See FusedExperts."""
        self._tables.begin()
        self._rows = LayerRows.of(index, self._bounds)

    def run(
        self,
        bits: Bits,
        addresses: Mapping[int, int],
        x: torch.Tensor,
        index: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Two launches and the upload of where the records lie. See FusedExperts."""
        assert self._rows is not None, "no layer was begun"
        arena = self._slots.arena
        table = self._tables.next()
        offsets = table.numpy()
        offsets.fill(-1)
        offsets[list(addresses)] = np.array(list(addresses.values())) - arena.data_ptr()
        self._offsets.copy_(table, non_blocking=True)
        launch_experts(self._formats[bits], arena, self._offsets, x, self._rows, out)

    def combine(self, out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One launch. See FusedExperts."""
        self._rows = None
        return launch_sum(out, weights)


def _is_meant(name: KernelName, bits: Bits) -> bool:
    """Whether no other kernel was asked for by name to multiply these bits."""
    if name in ("auto", TritonInt4.name):
        return True
    return name in KERNELS and bits not in KERNELS[name]().reads
