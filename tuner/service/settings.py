"""ServiceSettings: the operator's decisions; no request can change them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.inputs.host_name import is_loopback


@dataclass(frozen=True)
class ServiceSettings:
    """The settings of a service.

    storage: the URL of the store; folder: where it keeps definitions, prompts and logs of its jobs;
    models_folders: only folders below these may be named as a model; requests_per_s: of one client,
    who may save up `burst` of them; max_waiting: jobs in the queue; max_streams: event streams open
    at once; poll_s: seconds between queries of the store; grace_s: how long an interrupted study
    may take to end.
    """

    storage: str
    folder: Path
    host: str = "127.0.0.1"
    models_folders: tuple[Path, ...] = ()
    require_token: bool = False
    requests_per_s: float = 50.0
    max_body_bytes: int = 32 << 20
    max_waiting: int = 100
    max_streams: int = 32
    poll_s: float = 0.5
    heartbeat_s: float = 15.0
    grace_s: float = 30.0

    @property
    def needs_token(self) -> bool:
        """Whether requests need a token: always, except on loopback unless it is required there
        too."""
        return self.require_token or not is_loopback(self.host)

    @property
    def burst(self) -> float:
        """Requests that a client may send at once after a quiet time."""
        return max(1.0, 2 * self.requests_per_s)
