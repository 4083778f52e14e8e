"""The tuner's errors; each says what was given, what was allowed and what to try.

TunerError               anything that a user or a machine can cause (exit 1)
├── UsageError           what the user typed or wrote cannot be read (exit 2)
│   ├── DefinitionError  a study definition, workload or policy file
│   └── DeploymentError  a deployment YAML
├── InfeasibleStudyError nothing fits the budget (exit 3, with the smallest that would)
├── StoreError           the database cannot be opened, read or written
│   ├── StoreLostError    its file was removed or replaced while it was open
│   └── OldStoreError     it has no tables yet, or those of an earlier version
├── StudyError           a study is missing, taken or belongs to something else
│   ├── MissingStudyError there is none of this name (exit 2)
│   ├── TakenStudyError   another process leads it since the database was away
│   ├── BusyStudyError    it is queued or running already, or its definition differs
│   └── FullQueueError    the queue is full
├── CanaryError          a config does not reproduce its file's figures here and is not served
├── BusyMachineError     other programs keep a measurement from telling (exit 4): run it again
├── ExportError          a format cannot express a config
├── QualityError         quality cannot be evaluated or compared; carries the failure class
└── WorkerError          an engine worker failed; carries the failure class
    └── OverBudgetError  an outside reading of its memory exceeded the budget
"""

from __future__ import annotations

from typing import ClassVar

from engine.errors import shortened
from engine.types import FailureClass


class TunerError(Exception):
    """Base of everything that a user or a machine can cause."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return shortened(super().__str__())


class UsageError(TunerError):
    """Something the user typed or wrote cannot be read."""

    exit_code = 2


class DefinitionError(UsageError):
    """A study definition, a workload or a policy file cannot be read."""


class DeploymentError(UsageError):
    """A deployment YAML cannot be read."""


class InfeasibleStudyError(TunerError):
    """No point of the whole space fits.

    smallest_bytes: the smallest device budget that would fit something, None if unknown.
    """

    exit_code = 3

    def __init__(self, message: str, smallest_bytes: int | None = None) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes


class StoreError(TunerError):
    """The database cannot be opened, read or written."""


class StoreLostError(StoreError):
    """The database's file was removed or replaced while it was open."""


class OldStoreError(StoreError):
    """The database has no tables yet, or those of an earlier version, and was opened to be read."""


class StudyError(TunerError):
    """A study is missing, taken or belongs to something else."""


class CanaryError(TunerError):
    """A config does not reproduce its file's figures on this machine."""


class BusyMachineError(TunerError):
    """Figures are too slow while other programs use the machine, which says nothing of a config."""

    exit_code = 4


class ExportError(TunerError):
    """A format cannot express a config."""


class TakenStudyError(StudyError):
    """Another process leads the study since the connection to the database was lost."""


class MissingStudyError(StudyError):
    """There is no study of this name (exit 2, since the user typed it)."""

    exit_code = 2


class BusyStudyError(StudyError):
    """A study of this name is queued or running already, or has another definition."""


class FullQueueError(StudyError):
    """The queue of waiting studies is full."""


class QualityError(TunerError):
    """Quality cannot be evaluated, or not compared with 16 bits. failure: the class."""

    def __init__(self, message: str, failure: FailureClass) -> None:
        super().__init__(message)
        self.failure = failure


class WorkerError(TunerError):
    """An engine worker answered with an error, or died.

    failure: the class; worker_exit_code: what the command should exit with; smallest_bytes: for
    does_not_fit, the smallest budget that would fit.
    """

    def __init__(
        self,
        message: str,
        failure: FailureClass,
        worker_exit_code: int = 1,
        smallest_bytes: int | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.worker_exit_code = worker_exit_code
        self.smallest_bytes = smallest_bytes


class OverBudgetError(WorkerError):
    """Memory measured from outside exceeds the budget."""

    def __init__(self, message: str, peak_bytes: int) -> None:
        super().__init__(message, "out_of_memory", 3, peak_bytes)
