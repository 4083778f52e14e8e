"""All targets by name."""

from __future__ import annotations

from tests.fuzz import checkpoints, commands, definitions, derived, http, messages

FAMILIES = (definitions, checkpoints, derived, messages, http, commands)
TARGETS = {one.name: one for family in FAMILIES for one in family.TARGETS}
