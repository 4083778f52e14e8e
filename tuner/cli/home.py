"""Gives programs a place for data and caches where a container's user has none.

Many containers run as a user without HOME and passwd entry, or with a root that cannot be written.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

log = logging.getLogger(__name__)

_FOLDERS = {"XDG_DATA_HOME": ".local/share", "XDG_CACHE_HOME": ".cache"}


def give_home(environment: MutableMapping[str, str]) -> None:
    """Sets HOME, XDG_DATA_HOME and XDG_CACHE_HOME to a folder of temporary files where nothing
    else names a folder that can be written, and says so. A Hugging Face cache stays where it is."""
    spare = Path(tempfile.gettempdir()) / f"expertune-{os.getuid()}"
    try:
        home = Path(environment["HOME"]) if environment.get("HOME") else Path.home()
    except RuntimeError:
        home = spare
        environment["HOME"] = str(spare)
        environment.setdefault("USER", str(os.getuid()))  # torch and others ask for a name
        log.warning("there is no home folder (HOME): data are kept in %s; %s", spare, _ADVICE)
    for variable, place in _FOLDERS.items():
        folder = home / place
        if environment.get(variable) or _writable(folder / "expertune"):
            continue
        models = folder / "huggingface"
        if variable == "XDG_CACHE_HOME" and models.is_dir():
            environment.setdefault("HF_HOME", str(models))
        environment[variable] = str(spare / place)
        log.warning("%s cannot be written: %s is used; %s", folder, spare / place, _ADVICE)


_ADVICE = "it may be cleaned up: set XDG_DATA_HOME and XDG_CACHE_HOME to folders that stay"


def _writable(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
