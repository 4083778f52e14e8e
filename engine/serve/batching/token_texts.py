"""Texts and bytes of the tokens that log probabilities name.

The texts of an answer's tokens add up to the answer's text, and so do their bytes. A token that is
only a part of a character has no text of its own: the character belongs to the token that completes
it, while each token has its own bytes (as OpenAI's API has it).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

from engine.serve.batching.stop_strings import Shown

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # byte fallback, as Llama's tokenizer has it


@dataclass(frozen=True)
class Likely:
    """A token, its text and bytes in this place, and its natural log probability. bytes: None if
    they are unknown."""

    token: int
    text: str
    bytes: bytes | None
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, and the likeliest tokens at its position."""

    chosen: Likely
    top: tuple[Likely, ...]


class TokenTexts:
    """Knows the bytes of tokens. tokenizer: not used by any other thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def alternative(self, token: int, text: str, logprob: float) -> Likely:
        """A token that may not have been chosen. text: what it would have added to the answer."""
        if text:
            return Likely(token, text, text.encode(), logprob)
        if token in self._special:
            name = str(self._tokenizer.convert_ids_to_tokens(token))
            return Likely(token, name, name.encode(), logprob)
        return Likely(token, "", self._own_bytes(token), logprob)

    def placed(self, released: Iterable[Shown[TokenLogprob | None]]) -> tuple[TokenLogprob, ...]:
        """The tokens of a piece of the answer, each with the text and the bytes that it has there.

        In: what a StopGate released, in which a character's parts stand together.
        """
        made: list[TokenLogprob] = []
        group: list[Shown[TokenLogprob]] = []
        for shown in released:
            if shown.item is None:
                continue
            group.append(Shown(shown.text, shown.item))
            if shown.text:
                made += self._character(group)
                group = []
        return (*made, *self._character(group))

    def _character(self, group: Sequence[Shown[TokenLogprob]]) -> list[TokenLogprob]:
        """Tokens of which only the last one has text."""
        text = "".join(shown.text for shown in group)
        parts = [self._own_bytes(shown.item.chosen.token) or b"" for shown in group]
        if b"".join(parts).decode(errors="replace") != text:  # no bytes, or cut by a stop string
            parts = [shown.text.encode() for shown in group]
        return [
            _with_text(shown.item, shown.text, part)
            for shown, part in zip(group, parts, strict=True)
        ]

    @cached_property
    def _special(self) -> frozenset[int]:
        """Tokens that are left out of every text."""
        added = self._tokenizer.added_tokens_decoder.items()
        marked = (token for token, known in added if known.special)
        return frozenset((*self._tokenizer.all_special_ids, *marked))

    def _own_bytes(self, token: int) -> bytes | None:
        """Bytes of a token by itself: of a byte, or of byte-level BPE; None if it is neither."""
        if token in self._special:
            return b""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if found := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(found[1], 16)])
        known = _byte_level()
        if all(character in known for character in name):
            return bytes(known[character] for character in name)
        return None


def _with_text(found: TokenLogprob, text: str, own: bytes) -> TokenLogprob:
    chosen = replace(found.chosen, text=text, bytes=own)
    top = (chosen if one.token == chosen.token else one for one in found.top)
    return TokenLogprob(chosen, tuple(top))


@cache
def _byte_level() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (GPT-2's alphabet): printable
    ones of Latin-1 for themselves, the others in order from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {chr(0x100 + place): byte for place, byte in enumerate(others)}
    return {**{chr(byte): byte for byte in printable}, **shifted}
