"""Attributes wall time to the engine's activities: exactly one activity at any time.

switch() charges the time since the last switch to the activity that ends, so the parts sum to the
span between start and stop; the caller compares that with its own wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

Activity = Literal[
    "compute", "transfer_wait", "disk_wait", "router", "non_expert", "policy", "other"
]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)


class PhaseClock:
    """Accumulates seconds by activity. now: the clock, in seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._activity: Activity = "other"
        self._since = now()
        self.seconds: dict[Activity, float] = dict.fromkeys(ACTIVITIES, 0.0)

    def reset(self) -> None:
        """Clear all sums and start with `other`."""
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._activity = "other"
        self._since = self._now()

    def switch(self, activity: Activity) -> Activity:
        """End the present activity and start `activity`. Returns the ended one."""
        now = self._now()
        ended = self._activity
        self.seconds[ended] += now - self._since
        self._since = now
        self._activity = activity
        return ended

    def move(self, seconds: float, source: Activity, target: Activity) -> None:
        """Charge seconds of one activity to another, where a call did both."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds
