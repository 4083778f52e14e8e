"""All targets by name."""

from __future__ import annotations

from tests.fuzz import (
    checkpoints,
    commands,
    definitions,
    derived,
    http,
    messages,
    stores,
    tasks,
    tokenizers,
)

FAMILIES = (definitions, checkpoints, derived, messages, http, commands, tokenizers, tasks, stores)
TARGETS = {one.name: one for family in FAMILIES for one in family.TARGETS}
