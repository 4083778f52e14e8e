"""Stand-ins for what tests cannot have: an engine, a driver."""

from pathlib import Path

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"
