"""RateLimit: a token bucket per client, in bounded memory. Pure except for the given clock."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class RateLimit:
    """Each client may send `per_s` requests a second, and `burst` at once after a quiet time.

    clients: how many are remembered; the least recently active one is forgotten first.
    """

    per_s: float
    burst: float
    clients: int = 4096
    clock: Callable[[], float] = time.monotonic
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, init=False)

    def wait_s(self, client: str) -> float:
        """Takes one request from the bucket and returns 0; if it is empty, the seconds until one is
        available."""
        now_s = self.clock()
        left, then_s = self._buckets.pop(client, (self.burst, now_s))
        left = min(self.burst, left + (now_s - then_s) * self.per_s)
        taken = 1.0 if left >= 1.0 else 0.0
        self._buckets[client] = (left - taken, now_s)
        if len(self._buckets) > self.clients:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1.0 - left) / self.per_s


def client_of(address: str) -> str:
    """The client that an address belongs to: an IPv6 client owns its whole /64."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
