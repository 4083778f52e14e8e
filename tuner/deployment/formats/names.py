"""Names that a cluster takes: RFC 1035 labels made of what people call their studies."""

from __future__ import annotations

import re

from engine.files import short_digest

LONGEST = 63  # of a label; what others append to a name must fit too
_HASH_DIGITS = 8


def cluster_name(prefix: str, text: str, longest: int = LONGEST) -> str:
    """`prefix-text` in lower-case letters, digits and dashes.

    Where that loses something, eight digits of a hash keep two texts apart. prefix begins with a
    letter, so that services take the name too.
    """
    wanted = f"{prefix}-{text}"
    plain = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if plain == wanted and len(plain) <= longest:
        return plain
    digest = short_digest(text, _HASH_DIGITS)
    return f"{plain[: longest - _HASH_DIGITS - 1].rstrip('-')}-{digest}"
