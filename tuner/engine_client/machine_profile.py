"""Keeps the measured profile of this machine with a device, so that no study need measure it
again."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any

from engine.derived.file import DerivedKind, load_json, save_json
from engine.facts.machine import Hardware, MachineProfile
from engine.inputs.typed import check_types
from tuner.engine_client.session import EngineSession
from tuner.folders import cache_folder

PROFILE = DerivedKind("machine profile", 2, "it is measured again")
KEPT_S = 30 * 24 * 3600.0  # disks fill up and age


def machine_profile(session: EngineSession, hardware: Hardware) -> MachineProfile:
    """Returns the kept profile of this machine with the session's device, whose name it has asked
    for; or measures one. Raises WorkerError if that fails."""
    path = profile_path(hardware, session.opened_device)
    found = load_profile(path)
    if found is None:
        found = session.profile()
        keep_profile(path, found)
    return found


def profile_path(hardware: Hardware, device: str) -> Path:
    """The file that holds the profile. device: as the engine names it."""
    name = f"{hardware.fingerprint}-{device.replace(':', '-').replace('/', '-')}.json"
    return cache_folder() / "profiles" / name


def load_profile(path: Path) -> MachineProfile | None:
    """Reads a profile; None if it is missing, older than KEPT_S, or of another release; one that is
    damaged is dropped."""
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_mtime > KEPT_S:
            return None
    return load_json(path, PROFILE, _from_json)


def keep_profile(path: Path, profile: MachineProfile) -> None:
    """Writes the profile; if the folder cannot be written, the next study measures again."""
    with contextlib.suppress(OSError):
        save_json(path, PROFILE, profile.to_json())


def _from_json(data: dict[str, Any]) -> MachineProfile:
    names = {field.name for field in dataclasses.fields(MachineProfile)}
    if set(data) != names:
        raise ValueError("it has other figures")
    found = MachineProfile(**data)
    check_types(found)
    return found
