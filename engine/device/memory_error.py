"""The sentence for a device that gives no more memory, from what torch's allocator says."""

from __future__ import annotations

import re

from engine.errors import DeviceMemoryError
from engine.types import format_bytes, parse_size_bytes

_ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+) (\w+)")
_REMEDY = "fewer sequences, shorter ones, a smaller prefill.chunk_tokens or cache.expert_bytes"


def device_memory_error(
    name: str, message: str, *, budget_bytes: int = 0, free_bytes: int | None = None
) -> DeviceMemoryError:
    """The error for people.

    message: torch's; budget_bytes: what this process was limited to, 0 for none; free_bytes: of the
    whole device now, None if unknown. What is asked for fits into free memory only if the limit
    refused it: then smallest_bytes is the budget that would have held it.
    """
    found = _ASKED.search(message)
    asked_bytes = parse_size_bytes(f"{found[1]}{found[2]}") if found else None
    asked = "more memory" if asked_bytes is None else f"{format_bytes(asked_bytes)} more"
    if asked_bytes and budget_bytes and (free_bytes is None or free_bytes >= asked_bytes):
        return DeviceMemoryError(
            f"{name} was asked for {asked}, which passes its budget of "
            f"{format_bytes(budget_bytes)}: raise --vram, or take {_REMEDY}",
            budget_bytes + asked_bytes,
        )
    left = "" if free_bytes is None else f", {format_bytes(free_bytes)} are free on it"
    return DeviceMemoryError(
        f"{name} cannot give {asked}{left}: close other programs that use it, lower --vram, or "
        f"take {_REMEDY}"
    )
