"""Studies that run nothing, clients, and waiting for what happens in another thread."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi.testclient import TestClient

from tuner.service.app import build_app
from tuner.service.service import Service

ADDRESS = "http://127.0.0.1"
REQUEST = {"model": "demo", "vram": "60MB", "name": "first"}


@dataclass
class MadeChild:
    """A process that ends as told: by `end`, or with 130 once interrupted."""

    stubborn: bool = False
    said: str = "it failed as it was told"
    interrupted: bool = False
    killed: bool = False
    closed: bool = False
    _code: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def end(self, code: int) -> None:
        """Now."""
        self._code = code
        self._ended.set()

    def wait(self, timeout_s: float) -> int | None:
        """As a process."""
        self._ended.wait(min(timeout_s, 0.02))
        return self._code

    def interrupt(self) -> None:
        """Resumable, unless stubborn."""
        self.interrupted = True
        if not self.stubborn:
            self.end(130)

    def kill(self) -> None:
        """Whatever it is."""
        self.killed = True
        self.end(-9)

    def error(self) -> str:
        """One sentence."""
        return self.said

    def close(self) -> None:
        """Noted."""
        self.closed = True


def client_of(service: Service) -> TestClient:
    """A client on loopback."""
    return TestClient(build_app(service), base_url=ADDRESS, raise_server_exceptions=False)


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that another thread or process does; fail when it does not."""
    deadline_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.02)
