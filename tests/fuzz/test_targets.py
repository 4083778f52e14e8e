"""Every target on its kept inputs, and on wrong ones made for this run.

`make test` makes a few of them, always the same; `make fuzz` makes others each time, FUZZ_S seconds
for each target.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.oracle import Arena, Run, arena
from tests.fuzz.table import TARGETS
from tests.fuzz.target import Target

SECONDS = float(os.environ.get("FUZZ_S", "60"))
QUICK = settings(
    derandomize=True, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LONG = settings(QUICK, derandomize=False, max_examples=200)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Arena]:
    with arena(tmp_path) as found:
        yield found


@pytest.fixture
def run(target: Target, place: Arena) -> Iterator[Run]:
    with target.open(place) as found:
        yield found


def explore(target: Target, place: Arena, run: Run, how: settings, number: int) -> None:
    """Make inputs and hold the oracle to them; the smallest that fails is printed."""

    @seed(number)
    @how
    @given(data=target.inputs())
    def hold_all(data: bytes) -> None:
        target.hold(place, run, data)

    hold_all()


def test_kept_and_made_inputs(target: Target, place: Arena, run: Run) -> None:
    for data in target.seeds():
        target.hold(place, run, data)
    for path in target.corpus:
        target.hold(place, run, path.read_bytes())
    explore(target, place, run, settings(QUICK, max_examples=target.cases), 1)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_many_inputs(target: Target, place: Arena, run: Run) -> None:
    began_s, swept, rounds = time.monotonic(), 0, 0
    for data in target.sweep():
        target.hold(place, run, data)
        swept += 1
        if time.monotonic() - began_s > SECONDS / 2:
            break
    while time.monotonic() - began_s < SECONDS:
        explore(target, place, run, LONG, time.time_ns())
        rounds += 1
    count, took_s = swept + rounds * LONG.max_examples, time.monotonic() - began_s
    print(f"\n{target.name}: {count} inputs in {took_s:.0f} s")
