"""What a family's code may raise where it is tried whether it can run in a certain way."""

from __future__ import annotations

TRIAL_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
