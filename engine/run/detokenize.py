"""Converts a stream of tokens to a stream of text that never splits a character."""

from __future__ import annotations

from typing import Any

_LONGEST_CHARACTER = 16  # tokens; more bytes than that are no character, and waiting would not help


class TextPieces:
    """Returns the text of each token as soon as it consists of whole characters.

    A token is decoded together with the tokens before it, because some tokenizers drop the space
    before the first decoded token. text: all text returned so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []  # tokens of the last piece, the context of the next
        self._pending: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """The text that this token completes, empty while a character is incomplete."""
        self._pending.append(token)
        if len(self._pending) < _LONGEST_CHARACTER and self._decode(self._pending).endswith(
            "\ufffd"
        ):
            return ""
        return self._take()

    def finish(self) -> str:
        """The rest of an incomplete character."""
        return self._take() if self._pending else ""

    def _take(self) -> str:
        before = self._decode(self._given)
        text = self._decode([*self._given, *self._pending])[len(before) :]
        self._given, self._pending = self._pending, []
        self.text += text
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
