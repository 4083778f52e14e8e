"""Keys and values that grow in place: transformers' own layer copies all of them for each token.

Letters: B sequences, H heads, S tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

STEP_TOKENS = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A plain layer with room for the next tokens, at most STEP_TOKENS beyond those it holds.

    most_tokens: no more room than for these, unless as many tokens come. Keys and values are
    views, [B, H, S, D], whose heads lie apart; what is replaced from outside is copied at the next
    token.
    """

    def __init__(self, most_tokens: int) -> None:
        super().__init__()
        self._most = most_tokens
        self._rooms: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, S, D]; returns all keys and values, [B, H, count, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        new = (key_states, value_states)
        before = self.keys.shape[2]
        count = before + key_states.shape[2]
        self._make_room(count, new)
        for whole, states in zip(self._rooms, new, strict=True):
            whole[:, :, before:count] = states
        self.keys, self.values = (whole[:, :, :count] for whole in self._rooms)
        return self.keys, self.values

    def make_room(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values with room for one more token of each sequence, [B, H, room, D]; call
        `grown` when it is written."""
        self._make_room(self.keys.shape[2] + 1, (self.keys, self.values))
        return self._rooms[0], self._rooms[1]

    def grown(self) -> None:
        """One more token was written behind the others."""
        count = self.keys.shape[2] + 1
        keys, values = self._rooms
        self.keys, self.values = keys.narrow(2, 0, count), values.narrow(2, 0, count)

    def reset(self) -> None:
        """Drop everything."""
        self._rooms = []
        super().reset()

    def _make_room(self, count: int, like: tuple[torch.Tensor, torch.Tensor]) -> None:
        if self._have_room(count, like[0].shape[0]):
            return
        before, room = self.keys.shape[2], max(count, min(count + STEP_TOKENS, self._most))
        self._rooms = [_room(states, room) for states in like]
        for whole, old in zip(self._rooms, (self.keys, self.values), strict=True):
            whole[:, :, :before] = old

    def _have_room(self, count: int, sequences: int) -> bool:
        if not self._rooms or self.keys.shape[0] != sequences:
            return False
        keys, values = self._rooms
        unreplaced = keys.data_ptr() == self.keys.data_ptr()
        unreplaced = unreplaced and values.data_ptr() == self.values.data_ptr()
        return unreplaced and keys.shape[0] == sequences and keys.shape[2] >= count


def _room(states: torch.Tensor, tokens: int) -> torch.Tensor:
    return states.new_empty(*states.shape[:2], tokens, states.shape[3])
