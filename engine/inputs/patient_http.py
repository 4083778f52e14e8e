"""uvicorn's HTTP protocol, which closes connections whose request does not arrive in time, or whose
end cannot be told.

uvicorn bounds the pause between two requests only: a client that sends half of one and waits keeps
its connection, and a file descriptor, for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.inputs.strict_framing import StrictConnection

ARRIVAL_S = 30.0  # from the connection or the request's first byte to its last
MOST_HEAD_BYTES = 16 << 10


class PatientProtocol(H11Protocol):
    """For uvicorn.Config(http=...). arrival_s: how long a whole request may take to arrive."""

    arrival_s = ARRIVAL_S
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = StrictConnection(h11.SERVER, MOST_HEAD_BYTES)

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

    def send_400_response(self, msg: str) -> None:
        """Answer 400 and close; only close what is being answered, or was: one request has one
        answer."""
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

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
