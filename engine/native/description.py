"""Whether the native library is used on this machine, and with what."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.native.library import chosen_set, load, physical_cores


@dataclass(frozen=True)
class Description:
    """instruction_set: None without the library; threads: the physical cores that this process may
    use.

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
        return f"used, with {self.instruction_set} and {self.threads} threads"


def describe() -> Description:
    """Load the library and say what it would do here."""
    found = load()
    if isinstance(found, str):
        return Description(None, physical_cores(), found)
    return Description(chosen_set(), physical_cores(), None)
