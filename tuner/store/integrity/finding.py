"""Finding: one broken invariant of a store, in a sentence for users."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MOST_SHOWN = 3  # of equal faults: the others are counted


@dataclass(frozen=True)
class Finding:
    """A broken invariant. check: its name; sentence: what is wrong, with its numbers; remedy: what
    to try; mended_by_next_start: whether running the study again mends it, as after `kill -9`."""

    check: str
    sentence: str
    remedy: str
    mended_by_next_start: bool = False

    def to_json(self) -> dict[str, Any]:
        """The keys of one finding in `tune doctor --store --json`."""
        return asdict(self)


def shortened(found: Iterable[str], check: str, remedy: str) -> Iterator[Finding]:
    """One finding for each sentence; of very many the first ones, and how many follow."""
    sentences = list(found)
    for sentence in sentences[:MOST_SHOWN]:
        yield Finding(check, sentence, remedy)
    if (more := len(sentences) - MOST_SHOWN) > 0:
        yield Finding(check, f"{more} more of the same kind", remedy)
