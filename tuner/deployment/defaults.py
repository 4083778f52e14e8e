"""The defaults that `expertune/v1` pins, and a config as its difference from them.

A deployment leaves out what equals a pinned default, so that it is short, and loading fills it in
from `defaults.v1.json`, never from the code: a default that a later release changes does not change
what a written file means. ALWAYS is written nevertheless: what a resolved config decides for its
model and machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

DEFAULTS_FILE = Path(__file__).parent / "defaults.v1.json"
ALWAYS = ("cache.expert_bytes", "device.name")


def pinned_defaults() -> dict[str, dict[str, Any]]:
    """Every setting of v1 with its default, by section. Nothing is ever changed in the file; a
    setting that is newer than v1 is not in it."""
    found: dict[str, dict[str, Any]] = json.loads(DEFAULTS_FILE.read_text(encoding="utf-8"))
    return found


def changed_settings(engine: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A config's settings that differ from the pinned defaults, and ALWAYS."""
    flat = {
        f"{section}.{name}": value
        for section, values in engine.items()
        for name, value in values.items()
    }
    changed: dict[str, dict[str, Any]] = {}
    for path, value in changed_paths(flat).items():
        section, _, name = path.partition(".")
        changed.setdefault(section, {})[name] = value
    return changed


def changed_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of `path -> value`, those that differ from the pinned defaults, and ALWAYS."""
    pinned = {
        f"{section}.{name}": value
        for section, values in pinned_defaults().items()
        for name, value in values.items()
    }
    return {
        path: value
        for path, value in settings.items()
        if path in ALWAYS
        or path not in pinned
        or type(value) is not type(pinned[path])
        or value != pinned[path]
    }


def complete_settings(engine: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Inverse of changed_settings: what is left out has its pinned default. Sections that v1 does
    not know stay as they are."""
    pinned = pinned_defaults()
    sections = [*pinned, *(section for section in engine if section not in pinned)]
    return {section: {**pinned.get(section, {}), **engine.get(section, {})} for section in sections}


def missing_settings(engine: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Those of ALWAYS that this config does not state."""
    paths = {f"{section}.{name}" for section, values in engine.items() for name in values}
    return [path for path in ALWAYS if path not in paths]
