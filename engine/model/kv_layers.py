"""Finds the layers that keep plain keys and values in transformers' own cache."""

from __future__ import annotations

import sys
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


def plain_kv_layers(model: Any) -> tuple[int, ...]:
    """Indices of the layers that keep every token's keys and values, compressed ones included.

    Compressed: latent attention. Not included: sliding windows, recurrent states, layers without
    attention. Empty if the family brings its own kind of cache.
    """
    if _has_own_cache(model):
        return ()
    layers = DynamicCache(config=model.config).layers
    return tuple(number for number, layer in enumerate(layers) if type(layer) is DynamicLayer)


def _has_own_cache(model: Any) -> bool:
    module = sys.modules[type(model).__module__]
    return any(
        isinstance(value, type) and issubclass(value, Cache) and value.__module__ == module.__name__
        for value in vars(module).values()
    )
