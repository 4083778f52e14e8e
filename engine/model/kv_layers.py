"""Which of a model's layers keep plain keys and values in transformers' own cache."""

from __future__ import annotations

import sys
from typing import Any

from transformers.cache_utils import Cache, DynamicCache, DynamicLayer


def plain_kv_layers(model: Any) -> tuple[int, ...]:
    """Numbers of the layers that keep every token's keys and values, compressed ones included
    (latent attention).

    Not among them: sliding windows, recurrent states, layers without attention. None at all where
    the family brings a cache of its own kind.
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
