"""Keys and values that keep their place, so that work captured over them can run again.

transformers' own static layers hold them: with room for every token from the start, written at a
position that the device counts, and seen through a mask that is made from it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from transformers.cache_utils import Cache, StaticCache

from engine.errors import EngineError


class StaticKv(Cache):  # type: ignore[misc]
    """The kv_cache of one micro-batch, over layers that are lent to it.

    Inherits because transformers' models ask for their cache's class.
    """

    def __init__(self, layers: list[Any], max_tokens: int) -> None:
        super().__init__(layers=layers)
        self._max_tokens = max_tokens
        self._tokens = 0

    def make_room(self, tokens: int) -> None:
        """Count the tokens of each sequence that come next. Raises EngineError beyond the room: an
        accelerator does not survive a position outside of it."""
        self._tokens += tokens
        if self._tokens > self._max_tokens:
            raise EngineError(
                f"a sequence of {self._tokens} tokens exceeds kv.max_tokens = {self._max_tokens}: "
                "raise it, or set compute.capture to false"
            )


class StaticRooms:
    """Lends layers to micro-batches, again as soon as a micro-batch is gone: what was captured over
    them is then ready for the next one.

    config: of transformers' model, whose every layer keeps plain keys and values.
    """

    def __init__(self, config: Any, max_tokens: int) -> None:
        self._config = config
        self._max_tokens = max_tokens
        self._free: list[list[Any]] = []

    def lend(self, sequences: int) -> StaticKv:
        """An empty kv_cache for this many sequences. Free layers for other numbers are dropped."""
        self._free[:] = [
            layers
            for layers in self._free
            if layers[0].is_initialized and layers[0].batch_size == sequences
        ]
        if self._free:
            layers = self._free.pop()
        else:
            layers = StaticCache(config=self._config, max_cache_len=self._max_tokens).layers
        with torch.inference_mode():
            for layer in layers:
                layer.reset()  # a masked NaN would still be one in the sum
        lent = StaticKv(layers, self._max_tokens)
        weakref.finalize(lent, self._free.append, layers)
        return lent
