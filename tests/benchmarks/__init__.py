"""Slow measurements on twins: `pytest -m slow tests/benchmarks` on a quiet machine."""
