"""The HTTP server: its listening socket, and a shutdown that leaves the running study resumable."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from engine.inputs.patient_http import PatientProtocol

log = logging.getLogger(__name__)

GRACE_S = 10


class Server(uvicorn.Server):
    """uvicorn, which signals its shutdown to others and leaves the exit code to its caller."""

    def __init__(self, app: FastAPI, closing: threading.Event) -> None:
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        super().__init__(config)
        self.closing = closing
        self.interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends after the current requests; at once at the second signal."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self.interrupted = self.interrupted or sig == signal.SIGINT
        self.closing.set()


def address(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
