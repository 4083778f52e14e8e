"""Import this before torch: native libraries read the engine's settings when they are loaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.worker.process import NATIVE_SETTINGS

os.environ.update(NATIVE_SETTINGS)
