"""The kv_cache of a configuration: transformers' own, with plain layers replaced if needed.

A plain layer is replaced if its keys and values have fewer bits, lie on the host, or are only
partly kept.

Letters: B sequences, H heads, S tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, DynamicCache

from engine.config.settings import KvConfig
from engine.device.base import Device
from engine.kv_cache.growing_layer import GrowingLayer
from engine.kv_cache.host_rows import DeviceRows, HostLink, KvRows
from engine.kv_cache.merged_layer import AttentionWatch, MergedLayer
from engine.kv_cache.quantized_rows import KvFormat, PlainFormat, QuantizedFormat
from engine.kv_cache.static_rooms import StaticRooms
from engine.layout.kv import WINDOW_TOKENS
from engine.model.attention_hook import watch_attention
from engine.model.kv_layers import plain_kv_layers


class KvCaches:
    """Creates the kv_cache of each micro-batch.

    model: transformers' model. If all keys and values are kept at 16 bits on the device, plain
    layers grow in place on the CPU; elsewhere, and where unreserved memory holds experts, the model
    makes transformers' own cache at its first forward. If only a fraction is kept, the model's
    attention is hooked until close. static: all layers keep their place, for captured decoding.
    """

    def __init__(self, model: Any, device: Device, kv: KvConfig, *, static: bool = False) -> None:
        self._config = model.config
        self._plain = plain_kv_layers(model)
        self._bits = kv.bits
        on_host = kv.placement == "host" and not device.is_host_memory and bool(self._plain)
        self.link = HostLink(device) if on_host else None
        self._keep_fraction = kv.keep_fraction
        self._grows = device.torch_device.type == "cpu" and not kv.elastic
        self._most_tokens = kv.max_tokens
        self._rooms = StaticRooms(model.config, kv.max_tokens) if static else None
        self._watch = AttentionWatch()
        self._unwatch: Callable[[], None] | None = None
        if kv.keep_fraction != 1:
            self._unwatch = watch_attention(model, self._plain, self._watch)
        self.notes = self._notes(kv, device)

    def make(self, sequences: int) -> Any:
        """An empty cache for a micro-batch of so many sequences; None: let the model make its
        own."""
        if self._rooms is not None:
            return self._rooms.lend(sequences)
        merging = self._keep_fraction != 1
        if self._bits == 16 and self.link is None and not merging:
            return self._growing() if self._grows and self._plain else None
        cache = DynamicCache(config=self._config)
        if merging:
            for number in self._plain:
                cache.layers[number] = MergedLayer(self._keep_fraction, self._watch)
            return cache
        following: StoredLayer | None = None
        for number in reversed(self._plain):
            following = StoredLayer(self._format(), self._rows(), following)
            cache.layers[number] = following
        return cache

    def _growing(self) -> DynamicCache:
        cache = DynamicCache(config=self._config)
        for number in self._plain:
            cache.layers[number] = GrowingLayer(self._most_tokens)
        return cache

    def close(self) -> None:
        """Stop the fetch thread and remove the attention hook."""
        if self._unwatch is not None:
            self._unwatch()
        if self.link is not None:
            self.link.close()

    def _format(self) -> KvFormat:
        return PlainFormat() if self._bits == 16 else QuantizedFormat(self._bits)

    def _rows(self) -> KvRows:
        return DeviceRows() if self.link is None else self.link.open_rows()

    def _notes(self, kv: KvConfig, device: Device) -> tuple[str, ...]:
        """Notes for settings that do not apply to all layers."""
        total = self._config.get_text_config().num_hidden_layers
        reached = f"{len(self._plain)} of {total} layers"
        rest = "sliding windows and recurrent states stay whole, at 16 bits on the device"
        if not self._plain or len(self._plain) == total:
            return ()
        settings = [f"kv.bits = {kv.bits}"] if kv.bits != 16 else []
        settings += [f"kv.keep_fraction = {kv.keep_fraction:g}"] if kv.keep_fraction != 1 else []
        settings += ["kv.placement = host"] if self.link is not None else []
        return tuple(f"{setting}: {reached}; {rest}" for setting in settings)


class StoredLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: older tokens in rows, the newest unchanged.

    Inherits because transformers' Cache asks its layers for their class. following: the layer whose
    rows are needed next.
    """

    def __init__(
        self, layout: KvFormat, rows: KvRows, following: StoredLayer | None = None
    ) -> None:
        super().__init__()
        self._format = layout
        self._rows = rows
        self._following = following
        self._window = 0 if layout.tokens_per_row == 1 else WINDOW_TOKENS
        self._count = 0
        self._stored = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Create empty windows of the right shapes, [B, H, 0, D]."""
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, S, D]; returns all keys and values, [B, H, count, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._rows.prefetch()
        if self._following is not None:
            self._following._rows.prefetch()
        stored = self._stored
        self._count += key_states.shape[2]
        keys = _with_capacity(key_states, self._count)
        values = _with_capacity(value_states, self._count)
        rows = self._rows.read()
        if rows is not None:
            self._format.decode(rows, keys[:, :, :stored], values[:, :, :stored])
            del rows
        for whole, window, new in (
            (keys, self.keys, key_states),
            (values, self.values, value_states),
        ):
            middle = stored + window.shape[2]
            whole[:, :, stored:middle] = window
            whole[:, :, middle:] = new
        self._store(keys[:, :, stored:], values[:, :, stored:])
        return keys, values

    def _store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move tokens older than the window into rows, in whole rows; keep the rest."""
        step = self._format.tokens_per_row
        old = max(0, keys.shape[2] - self._window) // step * step
        if old:
            self._rows.append(self._format.encode(keys[:, :, :old], values[:, :, :old]))
            self._stored += old
        self.keys, self.values = keys[:, :, old:].clone(), values[:, :, old:].clone()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask covers all tokens: none is hidden."""
        return self._count + query_length, 0

    def get_seq_length(self) -> int:
        """Number of tokens seen."""
        return self._count

    def get_max_length(self) -> int:
        """-1: the layer has no limit of its own."""
        return -1


def _with_capacity(states: torch.Tensor, count: int) -> torch.Tensor:
    """An uninitialized tensor [B, H, count, D] for states [B, H, S, D]."""
    batch, heads, _, width = states.shape
    return states.new_empty(batch, heads, count, width)
