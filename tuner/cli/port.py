"""Listening sockets, and whether a port is free before anything that takes long."""

from __future__ import annotations

import socket

from tuner.errors import TunerError


class ListenError(TunerError):
    """The address cannot be listened on."""


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket; raises ListenError with one sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        host.encode("idna")  # create_server leaves its socket open where this fails
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ListenError(
            f"{host}:{port} cannot be listened on ({why}): end what listens there, or name another "
            "--host or --port"
        ) from None


def check_free(host: str, port: int) -> None:
    """Raises ListenError with one sentence if the address cannot be listened on now; 0 always
    can."""
    listen(host, port).close()
