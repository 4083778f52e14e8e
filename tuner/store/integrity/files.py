"""Files that the store names: they exist, or can be made again from what it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from tuner.store.integrity.finding import Finding
from tuner.store.tables import ExportRow, StudyRow


def findings(session: Session) -> Iterator[Finding]:
    """Exports without a content, and unfinished studies whose model or tasks are gone."""
    for export in session.scalars(select(ExportRow).order_by(ExportRow.id)):
        if not export.content.strip() and not os.path.isfile(export.path):
            yield Finding(
                "files",
                f"the exported file {export.path} is gone, and the store does not hold its content",
                "make it again with `tune export`",
            )
    unfinished = select(StudyRow).where(StudyRow.state != "FINISHED").order_by(StudyRow.id)
    for study in session.scalars(unfinished):
        for path in _named(study.definition):
            if not os.path.exists(path):  # whatever stands there as a name
                yield Finding(
                    "files",
                    f"study '{study.name}' needs {path}, which is not there",
                    "put it back to continue the study; what was measured is kept, and can be "
                    "shown and exported",
                )


def _named(definition: dict[str, Any]) -> Iterator[Path]:
    """Absolute paths of the model and of task files; ids and names of lm-eval are no paths."""
    quality = definition.get("quality")
    tasks = quality.get("tasks") if isinstance(quality, dict) else None
    for name in (definition.get("model"), *(tasks if isinstance(tasks, list) else ())):
        if isinstance(name, str) and Path(name).is_absolute():
            yield Path(name)
