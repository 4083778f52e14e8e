"""All targets by name."""

from __future__ import annotations

from tests.fuzz import (
    checkpoints,
    commands,
    definitions,
    derived,
    http,
    messages,
    tasks,
    tokenizers,
)

FAMILIES = (definitions, checkpoints, derived, messages, http, commands, tokenizers, tasks)
TARGETS = {one.name: one for family in FAMILIES for one in family.TARGETS}
