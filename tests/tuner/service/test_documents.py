"""The service's documents against the values that they show."""

from dataclasses import fields

from tuner.service.documents import ProgressDocument
from tuner.study.stages import Activity


def test_progress_is_an_activity_and_when_it_was_written():
    assert set(ProgressDocument.model_fields) == {"time", *(one.name for one in fields(Activity))}
