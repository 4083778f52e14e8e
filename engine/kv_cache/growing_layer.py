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
        self._most = most_tokens
        self._rooms: list[torch.Tensor] = []
        self._count = 0  # tokens in the rooms
        self._replaced: list[torch.Tensor | None] = [None, None]
        self._addresses = (0, 0)
        super().__init__()

    @property
    def keys(self) -> Any:
        """[B, H, count, D]; None before the first token."""
        return self._states(0)

    @keys.setter
    def keys(self, states: torch.Tensor | None) -> None:
        self._replace(0, states)

    @property
    def values(self) -> Any:
        """As keys."""
        return self._states(1)

    @values.setter
    def values(self, states: torch.Tensor | None) -> None:
        self._replace(1, states)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, H, S, D]; returns all keys and values, [B, H, count, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        before = self.get_seq_length()
        count = before + key_states.shape[2]
        self._make_room(count, (key_states, value_states))
        for whole, states in zip(self._rooms, (key_states, value_states), strict=True):
            whole[:, :, before:count] = states
        self._count = count
        return self.keys, self.values

    @property
    def sequences(self) -> int:
        """B; 0 before the first token."""
        states = self._rooms[0] if self._rooms else self._replaced[0]
        return 0 if states is None else states.shape[0]

    @property
    def sequence_bytes(self) -> int:
        """How far apart sequences lie in the room."""
        room = self._rooms[0]
        return room.stride(0) * room.element_size()

    def make_room(self) -> tuple[int, int, int, int]:
        """Addresses of keys and values [B, H, room, D] with room for one more token of each
        sequence, `room`, and the tokens there are; call `grown` when it is written."""
        if not self._rooms or self._rooms[0].shape[2] == self._count:
            self._make_room(self.get_seq_length() + 1, (self.keys, self.values))
        return *self._addresses, self._rooms[0].shape[2], self._count

    def grown(self) -> None:
        """One more token was written behind the others."""
        self._count += 1

    def get_seq_length(self) -> int:
        """The tokens there are."""
        states = self._replaced[0]
        return self._count if states is None else states.shape[2]

    def reset(self) -> None:
        """Drop everything."""
        self._rooms = []
        super().reset()

    def _states(self, which: int) -> torch.Tensor | None:
        if not self._rooms:
            return self._replaced[which]
        return self._rooms[which].narrow(2, 0, self._count)

    def _replace(self, which: int, states: torch.Tensor | None) -> None:
        if self._rooms:
            self._replaced = [self._states(0), self._states(1)]
            self._rooms = []
        self._replaced[which] = states
        self._count = 0

    def _make_room(self, count: int, like: tuple[Any, Any]) -> None:
        if self._rooms and self._rooms[0].shape[2] >= count:
            return
        before, room = self.get_seq_length(), max(count, min(count + STEP_TOKENS, self._most))
        rooms = [states.new_empty(*states.shape[:2], room, states.shape[3]) for states in like]
        for whole, old in zip(rooms, (self.keys, self.values), strict=True):
            whole[:, :, :before] = old
        self._rooms, self._count, self._replaced = rooms, before, [None, None]
        self._addresses = rooms[0].data_ptr(), rooms[1].data_ptr()
