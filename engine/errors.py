"""The engine's errors; each says what was given, what was allowed and what to try.

EngineError
├── UsageError            what the user typed cannot be read (exit 2)
│   └── ConfigError       an unknown or ill-typed config value
├── ModelError            the checkpoint cannot be used (exit 1)
│   ├── NotAModelError    no config.json, unknown id
│   ├── HubError          the hub does not serve the model: gated, offline, unreachable
│   ├── DenseModelError   a model without experts
│   ├── FamilyError       an MoE family outside transformers' experts interface
│   ├── CheckpointError   truncated, corrupt or inconsistent weights, pickle
│   └── RemoteCodeError   the checkpoint needs its own code
├── InfeasibleError       nothing fits the budget (exit 3, with the smallest that would)
│   └── DeviceMemoryError the device ran out of memory all the same (exit 3)
├── TaskError             an lm-eval task is unknown, empty, broken or not for this model (exit 2)
│   └── UnreachableTaskError its data cannot be reached (exit 1)
├── EvaluationError       an evaluation gave unusable values, such as NaN
├── StorageError          disk full, read-only, unwritable
│   └── UnreadableError   a file that expertune wrote is damaged or of another release
├── PackError             an expert pack is incomplete or belongs to something else
└── ProtocolError         a message between the tuner and the worker cannot be read
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from engine.types import FailureClass

LONGEST_MESSAGE = 1500  # characters; what is longer repeats a file that somebody wrote


class EngineError(Exception):
    """Base class of all errors that a user or a machine can cause."""

    exit_code: ClassVar[int] = 1
    failure: ClassVar[FailureClass] = "crash"

    def __str__(self) -> str:
        return shortened(super().__str__())


class UsageError(EngineError):
    """Something the user wrote cannot be read."""

    exit_code = 2
    failure = "usage"


class ConfigError(UsageError):
    """A config value is unknown or of the wrong type."""


class ModelError(EngineError):
    """The model cannot be used."""

    failure = "model"


class NotAModelError(ModelError):
    """There is no model at this place."""


class HubError(ModelError):
    """The hub does not serve the model, and the cache does not hold it completely."""


class DenseModelError(ModelError):
    """The model has no experts, so there is nothing to offload."""


class FamilyError(ModelError):
    """The family does not use transformers' experts interface."""


class CheckpointError(ModelError):
    """The weights are truncated, corrupt, inconsistent or in a refused format."""


class RemoteCodeError(ModelError):
    """The checkpoint brings its own code, which was not allowed."""


class InfeasibleError(EngineError):
    """Nothing fits the budget.

    smallest_bytes: the smallest device budget that would fit this configuration, None if unknown.
    """

    exit_code = 3
    failure: ClassVar[FailureClass] = "does_not_fit"

    def __init__(self, message: str, smallest_bytes: int | None = None) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes


class DeviceMemoryError(InfeasibleError):
    """The device gave no more memory to a configuration that was expected to fit."""

    failure = "out_of_memory"


class TaskError(EngineError):
    """An lm-eval task is unknown, empty or broken, or needs what this model does not have."""

    exit_code = 2
    failure = "task"


class UnreachableTaskError(TaskError):
    """The data of a task cannot be reached now."""

    exit_code = 1


class EvaluationError(EngineError):
    """An evaluation gave unusable values, such as NaN."""

    failure = "bad_output"


class StorageError(EngineError):
    """A folder or file cannot be written or read."""

    failure = "storage"


class UnreadableError(StorageError):
    """A file that expertune wrote is damaged, or of another release.

    reason: why, without the file's name; has_seal: it ends with a checksum, whatever that says.
    """

    def __init__(self, name: str, path: Path, reason: str, *, has_seal: bool = False) -> None:
        super().__init__(f"the {name} {path} cannot be used: {reason}")
        self.reason = reason
        self.has_seal = has_seal


class PackError(EngineError):
    """An expert pack is incomplete, corrupt or made for something else."""

    failure = "storage"


class ProtocolError(EngineError):
    """A protocol message cannot be read."""


def shortened(message: str) -> str:
    """A message of at most LONGEST_MESSAGE characters: without its middle if it has more, since its
    end says what to try."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    half = LONGEST_MESSAGE // 2 - 3
    return f"{message[:half]} ... {message[-half:]}"


def nearest_hint(word: str, allowed: Iterable[str], cutoff: float = 0.0) -> str:
    """`; the nearest is '...'` for a message about a word that is not allowed; empty if no
    allowed word is similar."""
    found = difflib.get_close_matches(word[:100], list(allowed), n=1, cutoff=cutoff)
    return f"; the nearest is '{found[0]}'" if found else ""
