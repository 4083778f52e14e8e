"""Makes valid cluster names, RFC 1035 labels, from users' study names."""

from __future__ import annotations

import re

from engine.files import short_digest

LONGEST = 63  # of a label; suffixes appended by others must fit too
_HASH_DIGITS = 8


def cluster_name(prefix: str, text: str, longest: int = LONGEST) -> str:
    """Returns `prefix-text` in lower-case letters, digits and dashes.

    If that loses characters, eight digits of a hash keep different texts apart. prefix begins with
    a letter, so that the name is also valid for services.
    """
    wanted = f"{prefix}-{text}"
    plain = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")
    if plain == wanted and len(plain) <= longest:
        return plain
    digest = short_digest(text, _HASH_DIGITS)
    return f"{plain[: longest - _HASH_DIGITS - 1].rstrip('-')}-{digest}"
