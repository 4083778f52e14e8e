"""The load by others: planted clocks, and a real program beside this one."""

import subprocess
import sys
import time

import pytest

from engine.measure.other_load import LoadReading, others_cpu_fraction, read_load


@pytest.mark.parametrize(
    ("everyone_s", "own_s", "fraction"),
    [(0.0, 0.0, 0.0), (10.0, 10.0, 0.0), (15.0, 10.0, 0.25), (40.0, 1.0, 1.0), (0.0, 10.0, None)],
)
def test_others_are_everyone_but_oneself(everyone_s: float, own_s: float, fraction: float | None):
    before, after = LoadReading(5, 100, 7, 2), LoadReading(15, 100 + everyone_s, 7 + own_s, 2)
    assert others_cpu_fraction(before, after) == fraction


def test_a_program_that_computes_beside_this_one_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            before = read_load()
            time.sleep(0.5)
            found = others_cpu_fraction(before, read_load())
        finally:
            other.kill()
    assert found is None or found * before.cpus > 0.2
