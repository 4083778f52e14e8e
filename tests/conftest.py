"""Settings for the whole test run, made before torch is imported."""

from __future__ import annotations

import os

from engine.worker.process import NATIVE_SETTINGS

# As in a worker: threads that spin would make a busy machine crawl.
for _name, _value in NATIVE_SETTINGS.items():
    os.environ.setdefault(_name, _value)
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes
    os.environ["OMP_NUM_THREADS"] = "1"
