"""An HTTP connection that refuses requests of which two programs could see different ends.

h11 reads what older clients send: lines that end with a line feed alone, folded headers, a
Content-Length beside a Transfer-Encoding. A proxy in front that reads one of them otherwise takes
part of one request for the next (request smuggling, RFC 9112, 11.2).
"""

from __future__ import annotations

import re
from typing import Any

import h11

_HEAD_END = re.compile(rb"\n\r?\n")  # as h11 looks for it
_BARE = re.compile(rb"(?<!\r)\n|\r(?=[^\n])")
_FOLDED = re.compile(rb"\n[ \t]")
_CLOSE = (b"Connection", b"close")


class StrictConnection(h11.Connection):
    """h11's connection of a server, with one reading only of where a request ends.

    A request with a body in chunks is the last one of its connection: nothing behind it is ever
    taken for another request.
    """

    def next_event(self) -> Any:
        """The next event. Raises h11.RemoteProtocolError, to be answered with 400."""
        if self.their_state is h11.IDLE:
            _check_lines(self.trailing_data[0])
        event = super().next_event()
        if not isinstance(event, h11.Request):
            return event
        names = {name for name, _ in event.headers}
        if b"transfer-encoding" not in names:
            return event
        if b"content-length" in names:
            raise _refused("Content-Length beside Transfer-Encoding")
        if event.http_version < b"1.1":
            raise _refused("Transfer-Encoding in HTTP/1.0")
        return h11.Request(
            method=event.method,
            target=event.target,
            headers=[*event.headers, _CLOSE],
            http_version=event.http_version,
        )


def _check_lines(received: bytes) -> None:
    """Raise for a head, or the beginning of one, with a line that could be two, or two for one."""
    end = _HEAD_END.search(received)
    head = received[: end.end()] if end else received
    if _BARE.search(head):
        raise _refused("a line that does not end with CR LF")
    if _FOLDED.search(head):
        raise _refused("a folded header")


def _refused(what: str) -> h11.RemoteProtocolError:
    return h11.RemoteProtocolError(f"ambiguous request: {what}", error_status_hint=400)
