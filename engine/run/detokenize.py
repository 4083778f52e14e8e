"""Converts a stream of tokens to a stream of text that never splits a character."""

from __future__ import annotations

from typing import Any

_LONGEST_CHARACTER = 16  # tokens; more bytes than that are no character, and waiting would not help
_PART = "\ufffd"


class TextPieces:
    """Returns the text of each token as soon as it consists of whole characters.

    A token is decoded together with the tokens before it, because some tokenizers drop the space
    before the first decoded token. text: all text returned so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._given: list[int] = []  # tokens of the last text, the context of the next
        self._pending: list[int] = []
        self.text = ""

    def push(self, token: int) -> str:
        """The text that this token completes, empty while a character is incomplete."""
        self._pending.append(token)
        incomplete = self._decode(self._pending).endswith(_PART)
        if incomplete and len(self._pending) < _LONGEST_CHARACTER:
            return ""
        return self._take()

    def would_be(self, token: int) -> str:
        """The text that `push` would return for this token."""
        pending = [*self._pending, token]
        if self._decode(pending).endswith(_PART) and len(pending) < _LONGEST_CHARACTER:
            return ""
        return self._text_of(pending)

    def finish(self) -> str:
        """The rest of an incomplete character."""
        return self._take() if self._pending else ""

    def _take(self) -> str:
        text = self._text_of(self._pending)
        if text:  # behind a special token, which has none, the word before is still the context
            self._given = self._pending
        self._pending = []
        self.text += text
        return text

    def _text_of(self, tokens: list[int]) -> str:
        before = self._decode(self._given)
        return self._decode([*self._given, *tokens])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
