"""Whether the native library is used on this machine, and with what."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from engine.native.library import INSTRUCTION_SET, load


@dataclass(frozen=True)
class Description:
    """instruction_set: None without the library; threads: as many as this process may run on.

    reason: why it is not used, and what to try; None if it is.
    """

    instruction_set: str | None
    threads: int
    reason: str | None

    def to_json(self) -> dict[str, str | int | None]:
        """A JSON-ready dict."""
        return asdict(self)

    def __str__(self) -> str:
        if self.reason is not None:
            return f"not used, torch multiplies instead (slower): {self.reason}"
        return f"used, with {self.instruction_set} and up to {self.threads} threads"


def describe() -> Description:
    """Load the library and say what it would do here."""
    count = len(os.sched_getaffinity(0))
    library = load()
    if isinstance(library, str):
        return Description(None, count, library)
    sets, asked = library.instruction_sets(), os.environ.get(INSTRUCTION_SET, "")
    if asked and asked not in sets:
        allowed = ", ".join(sets)
        return Description(None, count, f"{INSTRUCTION_SET}={asked} is none of {allowed}")
    return Description(asked or sets[0], count, None)
