"""Ways in which a file is damaged, as functions from its bytes to other bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

Damage = Callable[[bytes], bytes]
PLACES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)


def flip(data: bytes, place: float, bit: int) -> bytes:
    """One bit flipped at this fraction of the file."""
    changed = bytearray(data)
    changed[round(place * (len(data) - 1))] ^= 1 << bit
    return bytes(changed)


def without_seal(data: bytes) -> bytes:
    """As an earlier release wrote it: content alone."""
    return re.sub(rb'\n\{"expertune": .*\}\n\Z', b"", data)


def of_version(data: bytes) -> bytes:
    """Whole, but of a version that no release has written."""
    return re.sub(rb'("expertune": "[^"]*", "version": )\d+', rb"\g<1>98765", data)


def cut_list(data: bytes) -> bytes:
    """The last figure of the first list taken out, as if it had been cut short."""
    return re.sub(rb",\s*\d+(\s*\])", rb"\1", data, count=1)


DAMAGES: dict[str, Damage] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "a byte short": lambda data: data[:-1],
    "earlier release": without_seal,
    "other version": of_version,
    "list cut short": cut_list,
    "text": lambda data: b"no such thing\n",
    **{
        f"bit {bit} at {place}": partial(flip, place=place, bit=bit)
        for place in PLACES
        for bit in (0, 5)
    },
}
