"""The quality objective: a configuration's quality relative to the 16-bit model."""

from __future__ import annotations

from engine.contract.report import QualityReport, TaskResult
from tuner.errors import QualityError


def quality_ratio(reference: QualityReport, report: QualityReport) -> float:
    """1 = no loss. Without bits per byte: the mean metric above chance over the reference's.

    A group's tasks count once each; its own aggregate, which repeats them, does not count.
    Tasks that 16 bits answer at chance level carry no information and are ignored. Raises
    QualityError if nothing is left to compare.
    """
    if reference.bits_per_byte and report.bits_per_byte:
        return reference.bits_per_byte / report.bits_per_byte
    telling = [one for one in reference.tasks if _tells(one)]
    found = {(one.task, one.metric): one for one in report.tasks}
    pairs = [(one, found.get((one.task, one.metric))) for one in telling]
    wanted = sum(above_chance(one) for one, other in pairs if other)
    if not wanted:
        raise QualityError(
            "these tasks give no bits per byte and no metric above chance at 16 bits, so that "
            "quality cannot be compared: name other --tasks",
            "task",
        )
    return max(0.0, sum(above_chance(other) for _, other in pairs if other) / wanted)


def above_chance(result: TaskResult) -> float:
    """Rescales a result: 0 = guessing, 1 = all right; unchanged if guessing scores nothing."""
    chance = result.chance or 0.0
    return (result.value - chance) / (1 - chance)


def _tells(result: TaskResult) -> bool:
    """Whether a task's own result can tell: more is better, and it exceeds guessing by two standard
    errors."""
    if result.group:
        return False
    surplus = result.value - (result.chance or 0.0)
    return result.higher_is_better is not False and surplus > 2 * (result.stderr or 0.0)
