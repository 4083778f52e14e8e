"""The response cache: reuses stored deterministic answers (InstCache, arXiv 2411.13820), opt-in.

Only deterministic requests have a key: greedy or seeded, without log probabilities. A key is the
prompt's tokens and everything that decides the answer; the file belongs to one model and to the
settings that change what it computes. Filled by served answers, and ahead of time by
`scripts/fill_response_cache.py`. Constant in size: the least recently used answers are dropped. A
damaged answer is dropped too, a damaged file with all of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.derived.file import DerivedKind, drop
from engine.errors import StorageError
from engine.facts.model import ModelFacts
from engine.files import short_digest
from engine.serve.batching.sequence import Deliver, Finish, SequenceRequest, StepOutput

_TABLE = """CREATE TABLE IF NOT EXISTS answer (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, tokens INTEGER NOT NULL, finish TEXT NOT NULL,
    used REAL NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID"""
_log = logging.getLogger(__name__)
ANSWERS = DerivedKind("response cache", 1, "its answers are computed again")
T = TypeVar("T")


class ResponseCache:
    """Answers in a file. capacity: maximum number; clock: seconds, for the time of last use.

    Any thread may call. Raises StorageError if the file cannot be opened.
    """

    def __init__(self, path: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(path)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(
                f"the answers of serve.response_cache_entries cannot be kept in {path} "
                f"({error}): set "
                "XDG_CACHE_HOME to a folder that can be written, or "
                "serve.response_cache_entries to 0"
            ) from None

    def find(self, wanted: SequenceRequest) -> StepOutput | None:
        """The whole stored answer; None if there is none, or the request is not deterministic."""
        key = key_of(wanted)
        if key is None:
            return None
        row = self._using(lambda file: self._row(file, key))
        if row is None:
            return None
        return StepOutput(row.text, (), row.tokens, len(wanted.prompt), row.finish)

    def keep(self, wanted: SequenceRequest, text: str, last: StepOutput) -> None:
        """Store a finished answer."""
        key = key_of(wanted)
        if key is None or last.finish is None:
            return
        answer = _Answer(text, last.tokens, last.finish)

        def insert(file: sqlite3.Connection) -> None:
            file.execute(
                "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?)",
                (key, *answer, self._clock(), answer.digest(key)),
            )
            file.execute(
                "DELETE FROM answer WHERE key IN (SELECT key FROM answer ORDER BY used DESC "
                "LIMIT -1 OFFSET ?)",
                (self._capacity,),
            )

        self._using(insert)

    def recording(self, wanted: SequenceRequest, deliver: Deliver) -> Deliver:
        """Wrap `deliver` so that the answer is stored at its end."""
        if key_of(wanted) is None:
            return deliver
        pieces: list[str] = []

        def both(output: StepOutput) -> None:
            pieces.append(output.text)
            if output.finish is not None:
                self.keep(wanted, "".join(pieces), output)
            deliver(output)

        return both

    def __len__(self) -> int:
        with self._lock:
            return int(self._file.execute("SELECT COUNT(*) FROM answer").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _using(self, step: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `step` returns within a transaction; None after a damaged file was dropped."""
        with self._lock:
            try:
                with self._file:
                    return step(self._file)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._file.close()
                _remove(self._path, str(error))
                self._file = _opened(self._path)
                return None

    def _row(self, file: sqlite3.Connection, key: bytes) -> _Answer | None:
        row = file.execute(
            "SELECT text, tokens, finish, digest FROM answer WHERE key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        text, tokens, finish, digest = row
        ended: Any = _decoded(finish)  # one of the two if the digest is right
        answer = _Answer(_decoded(text), tokens, ended)
        if answer.digest(key) != _decoded(digest):
            file.execute("DELETE FROM answer WHERE key = ?", (key,))
            _log.warning("an answer in %s is damaged and dropped: it is computed again", self._path)
            return None
        file.execute("UPDATE answer SET used = ? WHERE key = ?", (self._clock(), key))
        return answer


class _Answer(NamedTuple):
    text: str
    tokens: int
    finish: Finish

    def digest(self, key: bytes) -> str:
        return short_digest(repr((key, *self)))


def _opened(path: Path) -> sqlite3.Connection:
    """The file with its table; one that is damaged or of another version is dropped first. Raises
    sqlite3.Error."""
    try:
        return _connected(path)
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
        _remove(path, str(error))
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=30, check_same_thread=False)
    with contextlib.ExitStack() as undo:
        undo.callback(file.close)
        file.text_factory = bytes  # damaged text must not fail before its digest is compared
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("PRAGMA synchronous=NORMAL")
        version = file.execute("PRAGMA user_version").fetchone()[0]
        if version != ANSWERS.version and file.execute("PRAGMA schema_version").fetchone()[0]:
            raise sqlite3.DatabaseError(
                f"it is of version {version}, this release reads {ANSWERS.version}"
            )
        # first, so that another process that opens it now finds no table without a version
        file.execute(f"PRAGMA user_version={ANSWERS.version}")
        file.execute(_TABLE)
        file.execute("CREATE INDEX IF NOT EXISTS answer_used ON answer (used)")
        undo.pop_all()
    return file


def _decoded(found: object) -> str:
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is wrong, not the disk (full, locked, read-only) or the program."""
    return type(error) is sqlite3.DatabaseError


def _remove(path: Path, reason: str) -> None:
    drop(path, ANSWERS, reason)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def response_cache_path(config: EngineConfig, facts: ModelFacts, cache_folder: Path) -> Path:
    """The path of the answers of this model under these settings."""
    text = json.dumps(lossy_settings(config), sort_keys=True, default=str)
    digest = short_digest(text)
    return cache_folder / "answers" / f"{facts.fingerprint}-{digest}.db"


def key_of(wanted: SequenceRequest) -> bytes | None:
    """A key that is equal for requests with equal answers; None if the request is not
    deterministic."""
    if wanted.logprobs is not None:
        return None
    sampling = asdict(wanted.sampling)
    if sampling["temperature"] != 0 and not wanted.seeded:
        return None
    if sampling["temperature"] == 0:  # only penalties change what is likeliest
        sampling = sampling["penalties"]
    lengths = (wanted.max_tokens, wanted.min_tokens, wanted.ignore_eos)
    told = [wanted.prompt, lengths, wanted.stop, sampling]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
