"""Lists and removes expert packs in the cache folder; the engine makes them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.errors import nearest_hint
from tuner.errors import StoreError, UsageError


@dataclass(frozen=True)
class PackFolder:
    """One pack. complete: False while it is being made, or if that was interrupted."""

    name: str
    path: Path
    size_bytes: int
    complete: bool


def list_packs(root: Path) -> tuple[PackFolder, ...]:
    """Every pack in the cache folder, by name; none if the folder is missing."""
    folders = sorted(path for path in (root / "packs").glob("*") if path.is_dir())
    return tuple(
        PackFolder(
            folder.name,
            folder,
            sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
            (folder / "manifest.json").is_file(),
        )
        for folder in folders
    )


def remove_packs(root: Path, name: str) -> tuple[PackFolder, ...]:
    """Removes the pack of this name, or `all`; returns what was removed.

    Raises UsageError with the nearest name if there is no such pack.
    """
    packs = list_packs(root)
    chosen = packs if name == "all" else tuple(pack for pack in packs if pack.name == name)
    if not chosen and name != "all":
        hint = nearest_hint(name, [pack.name for pack in packs]) or ", and no other"
        raise UsageError(f"there is no pack '{name}'{hint}: see `tune pack --list`")
    for pack in chosen:
        try:
            shutil.rmtree(pack.path)
        except OSError as error:
            raise StoreError(f"{pack.path} cannot be removed: {error.strerror}") from None
    return chosen
