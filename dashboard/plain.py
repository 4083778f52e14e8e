"""Texts that people gave, such as names of studies and models, for places that read Markdown.

Streamlit renders labels, captions and headings as Markdown, in which a name could fetch a picture
from elsewhere.
"""

from __future__ import annotations

import re

_MARKUP = re.compile(r"([!-/:-@\[-`{-~])")  # all of ASCII's punctuation may be escaped


def plain(text: str) -> str:
    """The text as Markdown that shows exactly it, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))
