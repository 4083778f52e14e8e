"""Settings for the whole test run, made before torch is imported."""

from __future__ import annotations

import gc
import os

import pytest

from engine.worker.process import NATIVE_SETTINGS

# As in a worker: threads that spin would make a busy machine crawl.
for _name, _value in NATIVE_SETTINGS.items():
    os.environ.setdefault(_name, _value)
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes
    os.environ["OMP_NUM_THREADS"] = "1"
gc.disable()  # while modules are imported: none of them is garbage


def pytest_collection_finish() -> None:
    gc.enable()


@pytest.fixture(scope="module", autouse=True)
def imports_are_no_garbage() -> None:
    """The engine collects garbage whenever it lets something go: not through every module that was
    imported until now, which takes a quarter of a second each time."""
    gc.collect()
    gc.freeze()
