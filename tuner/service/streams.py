"""Streams: limits the number of open event streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException

RETRY_S = 10


@dataclass
class Streams:
    """Counts open streams; used from the event loop only."""

    limit: int
    _open: int = field(default=0, init=False)

    def check(self) -> None:
        """Raises 429 if the limit is reached."""
        if self._open >= self.limit:
            raise HTTPException(
                429,
                f"{self.limit} event streams are open already: try again later, or ask "
                "GET /v1/studies/NAME now and then",
                {"Retry-After": str(RETRY_S)},
            )

    async def counted(self, lines: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yields the same lines; the stream counts from its first line to its end."""
        self._open += 1
        try:
            async for line in lines:
                yield line
        finally:
            self._open -= 1
