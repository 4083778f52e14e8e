"""Text that others wrote, as terminals and logs may show it: escaped where they would act on it."""

from __future__ import annotations

import logging
import re
import sys

# C0 and C1 but line feed and tab, what separates lines or turns their direction, what has no width,
# halves of surrogate pairs.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with every character escaped that a terminal acts on or that hides others; line
    feeds and tabs stay."""
    return _ACTING.sub(lambda found: ascii(found.group())[1:-1], text)


def as_one_entry(text: str) -> str:
    """`visible`, with each further line indented: none can be taken for another message."""
    return visible(text).replace("\n", "\n    ")


class EntryFormatter(logging.Formatter):
    """Formats each record so that whatever stands in it, it looks like one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record and its traceback; further lines are indented."""
        return as_one_entry(super().format(record).rstrip("\n"))


def log_to_stderr(level: int | str, style: str) -> None:
    """Log to stderr from now on, unless the program logs already. style: of logging.Formatter."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(EntryFormatter(style))
    logging.basicConfig(level=level, handlers=[handler])
