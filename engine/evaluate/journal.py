"""The results of an evaluation so far, on disk, so that a killed evaluation can resume.

One file for everything that can change a score besides the request itself: the model, the lossy
settings, the versions. One line per finished group: request -> result. The file is deleted when the
evaluation is stored elsewhere.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.derived.file import DerivedKind
from engine.derived.lines import LineFile
from engine.errors import StorageError
from engine.facts.model import ModelFacts
from engine.files import short_digest

JOURNAL = DerivedKind("journal of an evaluation", 1, "those requests are evaluated again")
PACKAGES = ("expertune", "torch", "transformers", "tokenizers")


class Journal:
    """Results by request key, in memory and in an append-only file.

    Raises StorageError if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._lines = LineFile(path, JOURNAL)
        self._known: dict[str, Any] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for results in self._lines.read():
                self._known.update(results if isinstance(results, dict) else {})
        except OSError as error:
            raise self._unusable(error) from None

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Any:
        """The result of a request, None if there is none yet."""
        return self._known.get(key)

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep the results of one finished group; they are on disk when this returns."""
        if not results:
            return
        self._known.update(results)
        try:
            self._lines.append(dict(results))
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StorageError:
        return StorageError(
            f"the journal {self._lines.path} of this evaluation cannot be kept "
            f"({error.strerror}): free some space there, or set XDG_CACHE_HOME to a folder "
            "that you may write"
        )


def journal_path(facts: ModelFacts, config: EngineConfig, cache_folder: Path) -> Path:
    """The journal's path for this model under these settings."""
    parts = {
        "model": facts.fingerprint,
        "settings": lossy_settings(config),
        "versions": _versions(),
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return cache_folder / "evaluations" / f"{short_digest(text, 24)}.jsonl"


def request_key(*parts: Any) -> str:
    """Key of a request, 24 hex digits: its tokens and everything else that decides its result."""
    return short_digest(repr(parts), 24)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
