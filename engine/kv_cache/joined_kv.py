"""The kv_caches of several micro-batches as one, for a token of each sequence.

Letters: T tokens of all micro-batches, one of each sequence, B of one, H heads, N tokens so far, D
head width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache

from engine.model.joined_attention import StructureError


class JoinedKv(Cache):  # type: ignore[misc]
    """Each micro-batch's new keys and values go to its own cache.

    packs: models of latent attention compute keys and values from what the cache gives them. They
    are given that of all sequences behind one another, as if it were one sequence. Others are given
    back what is new, and the caches are asked one after another while the module attends, so that
    keys and values in fewer bits are not decoded for all at once.

    Inherits because transformers' models ask for their cache's class. Lengths and kinds of layers
    are those of the first micro-batch.
    """

    def __init__(self, caches: Sequence[Any], sizes: Sequence[int], *, packs: bool) -> None:
        super().__init__(layers=caches[0].layers)
        self._caches = caches
        self.sizes = list(sizes)
        self._packs = packs
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._where: tuple[int, tuple[Any, ...], dict[str, Any]] = 0, (), {}
        self._lengths: list[int] = []  # tokens of each micro-batch's sequences

    def own_layers(self, number: int) -> list[Any]:
        """Each micro-batch's layer of this number, for whom writes there by itself."""
        return [cache.layers[number] for cache in self._caches]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, H, 1, D] -> what the module shall attend to: itself, or if it packs [1, H, N of all,
        D]."""
        if self._given is not None:
            raise StructureError("a layer's attention does not use what its cache has given")
        self._where = layer_idx, args, kwargs
        self._given = key_states, value_states
        if self._packs:
            own = list(self._updated(key_states, value_states))
            self._lengths = [keys.shape[2] for keys, _ in own]
            keys, values = (_packed(states) for states in zip(*own, strict=True))
            self._given = keys, values
        return self._given

    def each(
        self, key: torch.Tensor, value: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """See OwnStates."""
        given, self._given = self._given, None
        if given is None:
            raise StructureError("attention without new keys and values")
        if self._packs:
            yield from self._unpacked(key, value)
            return
        if key is not given[0] or value is not given[1]:
            raise StructureError("attention changes what its cache has given")
        yield from self._updated(key, value)

    def _updated(
        self, key: torch.Tensor, value: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All keys and values of each micro-batch, with these new ones."""
        number, args, kwargs = self._where
        parts = (torch.split(states, self.sizes) for states in (key, value))
        for cache, own_key, own_value in zip(self._caches, *parts, strict=True):
            yield cache.update(own_key, own_value, number, *args, **kwargs)

    def _unpacked(
        self, key: torch.Tensor, value: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        counts = [size * length for size, length in zip(self.sizes, self._lengths, strict=True)]
        if key.shape[2] != sum(counts) or value.shape[2] != sum(counts):
            raise StructureError("attention changes the number of keys that its cache has given")
        parts = (torch.split(states, counts, dim=2) for states in (key, value))
        for size, own_key, own_value in zip(self.sizes, *parts, strict=True):
            yield _sequences(own_key, size), _sequences(own_value, size)


def _packed(states: Sequence[torch.Tensor]) -> torch.Tensor:
    """[B, H, N, D] of each micro-batch -> [1, H, B * N of all, D]."""
    return torch.cat([own.transpose(0, 1).flatten(1, 2) for own in states], dim=1)[None]


def _sequences(states: torch.Tensor, size: int) -> torch.Tensor:
    """[1, H, B * N, D] -> [B, H, N, D]."""
    heads, _, width = states.shape[1:]
    return states.view(heads, size, -1, width).transpose(0, 1)
