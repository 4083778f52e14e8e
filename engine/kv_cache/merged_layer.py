"""A layer of the kv_cache that keeps a fraction of its positions (Elastic Cache, arXiv 2407.18121).

Letters: B sequences, H heads, S new tokens, N positions, D head width.

A pass of several tokens merges: after their attention, positions beyond that fraction are merged
into anchors (merge.py). A pass of one token drops: if the layer is over the fraction, the position
at one fixed index, so that the prompt's anchors and the newest tokens stay. Keys carry the rotary
position of their own token, so tokens are numbered as if nothing had been merged.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from engine.errors import EngineError
from engine.kv_cache.merge import Marks, merge, new_marks, received_attention
from engine.layout.kv import SINK_TOKENS, drop_index, kept_tokens


class AttentionWatch:
    """Implements AttentionPort: passes the output of an attention module to the layer that just
    received its keys. No micro-batch switches in between."""

    def __init__(self) -> None:
        self.latest: MergedLayer | None = None

    def attended(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
        weights: torch.Tensor | None,
    ) -> None:
        """Process the module's attention. weights [B, Q, S, N] if the module computed them;
        None: they are recomputed."""
        layer, self.latest = self.latest, None
        if layer is None or not layer.waits:
            return
        if weights is None:
            layer.take(received_attention(query, key, mask, scaling))
        else:
            layer.take(weights.float().sum(dim=2).mean(dim=1))


class MergedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [B, H, N, D]; N stays at a fraction of the tokens seen.

    Inherits because transformers' Cache asks its layers for their class. waits: several tokens came
    and have not attended yet.
    """

    def __init__(self, keep_fraction: float, watch: AttentionWatch) -> None:
        super().__init__()
        self._keep_fraction = keep_fraction
        self._watch = watch
        self._seen = 0
        self._drop = SINK_TOKENS
        self.waits = False

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Create empty keys and values, [B, H, 0, D]."""
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._marks = new_marks(key_states.shape[0], 0, 0, key_states.device)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, S, D]; returns all positions held, [B, H, N, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.waits:
            raise EngineError(
                "this model's attention does not go through transformers' attention interface, so "
                "what matters in its keys and values is unknown: set kv.keep_fraction to 1"
            )
        batch, _, new, _ = key_states.shape
        parts = self._parts()
        fresh = new_marks(batch, self._seen, new, key_states.device)
        self.keys = torch.cat([*(self.keys[:, :, part] for part in parts), key_states], dim=2)
        self.values = torch.cat([*(self.values[:, :, part] for part in parts), value_states], dim=2)
        self._marks = Marks(
            *(
                torch.cat([*(old[:, part] for part in parts), more], dim=1)
                for old, more in zip(self._marks, fresh, strict=True)
            )
        )
        self._seen += new
        self.waits = new > 1
        self._watch.latest = self
        return self.keys, self.values

    def take(self, received: torch.Tensor) -> None:
        """Add the attention [B, N] that positions received from the newest tokens; then merge."""
        self.waits = False
        self._marks = self._marks._replace(importance=self._marks.importance + received)
        keep = kept_tokens(self._keep_fraction, self._seen)
        if self._held > keep:
            self.keys, self.values, self._marks = merge(self.keys, self.values, self._marks, keep)
        self._drop = drop_index(self._held)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All positions held are visible; they are numbered so that they end where the new
        tokens begin."""
        held = self._held - self._over
        return held + query_length, self._seen - held

    def get_seq_length(self) -> int:
        """Number of tokens seen, not of positions held."""
        return self._seen

    def get_max_length(self) -> int:
        """-1: the layer has no limit of its own."""
        return -1

    @property
    def _held(self) -> int:
        return int(self.keys.shape[2]) if self.is_initialized else 0

    @property
    def _over(self) -> int:
        """Positions that the next pass drops before it begins: one or none."""
        return int(self._held > kept_tokens(self._keep_fraction, self._seen))

    def _parts(self) -> tuple[slice, ...]:
        """The slices of held positions that stay."""
        if not self._over:
            return (slice(None),)
        return (slice(self._drop), slice(self._drop + 1, None))
