"""The response cache: reuses stored deterministic answers (InstCache, arXiv 2411.13820), opt-in.

Only deterministic requests have a key: greedy or seeded, without log probabilities. A key is the
prompt's tokens and everything that decides the answer; the file belongs to one model and to the
settings that change what it computes. Filled by served answers, and ahead of time by
`scripts/fill_response_cache.py`. Constant in size: the least recently used answers are dropped.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.errors import StorageError
from engine.facts.model import ModelFacts
from engine.files import short_digest
from engine.serve.batching.sequence import Deliver, SequenceRequest, StepOutput

_TABLE = """CREATE TABLE IF NOT EXISTS answer (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, tokens INTEGER NOT NULL, finish TEXT NOT NULL,
    used REAL NOT NULL) WITHOUT ROWID"""


class ResponseCache:
    """Answers in a file. capacity: maximum number; clock: seconds, for the time of last use.

    Any thread may call. Raises StorageError if the file cannot be opened.
    """

    def __init__(self, path: Path, capacity: int, clock: Callable[[], float] = time.time) -> None:
        self._capacity = capacity
        self._clock = clock
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=30, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(_TABLE)
            self._file.execute("CREATE INDEX IF NOT EXISTS answer_used ON answer (used)")
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
        with self._lock, self._file:
            row = self._file.execute(
                "SELECT text, tokens, finish FROM answer WHERE key = ?", (key,)
            ).fetchone()
            if row is not None:
                now = (self._clock(), key)
                self._file.execute("UPDATE answer SET used = ? WHERE key = ?", now)
        if row is None:
            return None
        return StepOutput(row[0], (), row[1], len(wanted.prompt), row[2])

    def keep(self, wanted: SequenceRequest, text: str, last: StepOutput) -> None:
        """Store a finished answer."""
        key = key_of(wanted)
        if key is None or last.finish is None:
            return
        with self._lock, self._file:
            self._file.execute(
                "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?)",
                (key, text, last.tokens, last.finish, self._clock()),
            )
            self._file.execute(
                "DELETE FROM answer WHERE key IN (SELECT key FROM answer ORDER BY used DESC "
                "LIMIT -1 OFFSET ?)",
                (self._capacity,),
            )

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
