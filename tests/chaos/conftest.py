"""The tuner's command and the engine's tiny model, as their own tests have them."""

from tests.engine.conftest import engine, tiny_folder
from tests.tuner.conftest import finished, folder, misbehave, processes, study, tune

__all__ = [
    "engine", "finished", "folder", "misbehave", "processes", "study", "tiny_folder", "tune",
]  # fmt: skip
