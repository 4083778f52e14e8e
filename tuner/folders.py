"""Locates the user's data folder, the demo model, policies and study definitions."""

from __future__ import annotations

from pathlib import Path

import platformdirs

from engine import files
from engine.types import shown
from tuner.errors import StoreError, UsageError

_LONGEST_NAME = 255  # bytes of one name, on every file system
SOURCE = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """`$XDG_DATA_HOME/expertune`, created when missing.

    Raises StoreError with one sentence if it cannot be created.
    """
    folder = Path(platformdirs.user_data_dir("expertune"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"the data folder {folder} cannot be created ({error.strerror}): "
            "set XDG_DATA_HOME to a folder that you may write"
        ) from None
    return folder


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/expertune`, the folder of packs and profiles; it may not exist yet."""
    return Path(platformdirs.user_cache_dir("expertune"))


def default_storage() -> str:
    """The URL of the user's own database."""
    return f"sqlite:///{data_folder() / 'expertune.db'}"


def studies_folder() -> Path:
    """The folder with policies/, workloads/ and demo/; UsageError if there is none."""
    folder = files.studies_folder()
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}: set EXPERTUNE_STUDIES to one that holds policies/, "
            "workloads/, hardware/ and demo/, or unset it for those that expertune brings"
        )
    return folder


def user_path(text: str | Path) -> Path:
    """A path as people write it, `~` expanded. Raises UsageError for one that no system has."""
    word = str(text)
    if "\0" in word:
        raise UsageError(f"the path {shown(word)!r} holds a zero character: no file's name does")
    if any(len(part.encode(errors="replace")) > _LONGEST_NAME for part in word.split("/")):
        raise UsageError(f"the path '{shown(word)}' has a name of more than {_LONGEST_NAME} bytes")
    try:
        return Path(word).expanduser()
    except RuntimeError:
        home = word.partition("/")[0]
        raise UsageError(
            f"there is no home folder '{shown(home)}': write the path from /"
        ) from None


def resolve_model(name: str) -> str:
    """Turns `demo` into its folder, a local folder into its absolute path; keeps anything else.

    Anything else counts as a Hugging Face id, which the engine resolves.
    """
    if name == "demo":
        folder = studies_folder() / "demo" / "model"
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"the demo model is not in {folder}: unset EXPERTUNE_STUDIES for the one that "
                "expertune brings, or name another model"
            )
        return str(folder)
    folder = user_path(name)
    if folder.exists():
        return str(folder.resolve())
    if name.startswith((".", "/", "~")):
        raise UsageError(
            f"there is no model folder {name}: give a folder with config.json, a Hugging Face id "
            "or `demo`"
        )
    return name
