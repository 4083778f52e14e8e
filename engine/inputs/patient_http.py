"""uvicorn's HTTP protocol, which closes connections whose request does not arrive in time.

uvicorn bounds the pause between two requests only: a client that sends half of one and waits keeps
its connection, and a file descriptor, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

ARRIVAL_S = 30.0  # from the connection or the request's first byte to its last


class PatientProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """For uvicorn.Config(http=...). arrival_s: how long a whole request may take to arrive."""

    arrival_s = ARRIVAL_S
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request from now on."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of a request, if there is more to come."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.arrival_s, self._close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None

    def _close(self) -> None:
        self._deadline = None
        self.transport.close()
