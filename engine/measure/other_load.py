"""How much of the processor other programs used while this one measured.

User time of all processes on the CPUs that this process may use, less its own. System time is left
out, because the kernel reads the disk for this process too.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class LoadReading:
    """Clock and user times at one moment, in seconds. cpus: how many this process may use."""

    wall_s: float
    all_user_s: float
    own_user_s: float
    cpus: int


def read_load() -> LoadReading:
    """Reads the clocks; what a hypervisor gives to other machines (steal) counts as others'."""
    times = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    mine = [times[cpu] for cpu in allowed if cpu < len(times)]
    everyone = sum(one.user + one.nice + getattr(one, "steal", 0.0) for one in mine)
    return LoadReading(time.perf_counter(), everyone, os.times().user, len(mine))


def others_cpu_fraction(before: LoadReading, after: LoadReading) -> float | None:
    """The fraction of the processor's time that others used, 0 to 1; None where the system's clock
    does not move as this process's does (some sandboxes show zeros)."""
    wall_s = after.wall_s - before.wall_s
    everyone_s = after.all_user_s - before.all_user_s
    own_s = after.own_user_s - before.own_user_s
    if wall_s <= 0 or not after.cpus or everyone_s < own_s / 2:
        return None
    return min(1.0, max(0.0, everyone_s - own_s) / (wall_s * after.cpus))
