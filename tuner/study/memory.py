"""What runs were seen to take beyond the memory equation, kept for this model and machine.

In: a config, and its memory as read from outside. Out: the correction with which the study's next
configs resolve, and a smaller cache for a config that exceeded its budget. A correction may be
negative: then more experts fit. It changes once in a study, after the first run, and after a run
that exceeded the budget, so that a point keeps its config.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engine.config.settings import EngineConfig
from engine.derived.file import DerivedKind, load_json, save_json
from engine.errors import InfeasibleError
from engine.facts.machine import Hardware
from engine.facts.model import ModelFacts
from engine.inputs.typed import check_types
from engine.memory.plan import FIXED_WORKSPACE_BYTES, resolve
from engine.memory.records import record_bytes
from engine.native.library import products_name
from tuner.folders import cache_folder
from tuner.search.space import SearchSpace
from tuner.store.snapshots import TrialSnapshot

SEEN = DerivedKind("record of seen memory", 1, "the next runs are read again")
# Left beside the largest error seen: configs differ, and an allocator keeps what one of them freed.
MARGIN_BYTES, MARGIN_FRACTION = 4_000_000, 0.005
LEAST_BYTES = -FIXED_WORKSPACE_BYTES // 2  # a correction takes back no more than this
_STEP_BYTES = 1_000_000  # corrections are rounded up to it


@dataclass(frozen=True)
class SeenMemory:
    """Errors of the equation in runs so far, in bytes: what was seen, less what it says."""

    runs: int
    least_bytes: int
    most_bytes: int

    def with_run(self, error_bytes: int) -> SeenMemory:
        """With one run more."""
        least, most = min(self.least_bytes, error_bytes), max(self.most_bytes, error_bytes)
        return SeenMemory(self.runs + 1, least, most)

    def correction_bytes(self, budget_bytes: int) -> int:
        """What to add to the equation under this budget."""
        margin = max(MARGIN_BYTES, MARGIN_FRACTION * budget_bytes)
        found = -int(-(self.most_bytes + margin) // _STEP_BYTES) * _STEP_BYTES
        return max(found, LEAST_BYTES)


def seen_path(hardware: Hardware, facts: ModelFacts, device: str) -> Path:
    """The file of a model's runs on a device of this machine with these products."""
    name = f"{facts.fingerprint}-{device.replace(':', '-')}-{products_name()}.json"
    return cache_folder() / "memory" / hardware.fingerprint / name


def kept_correction(trials: Sequence[TrialSnapshot], path: Path, budget_bytes: int) -> int | None:
    """The correction that a study begins or goes on with: that of its latest trial, else that of
    earlier runs of the model; None without either, or without a budget."""
    if not budget_bytes:
        return None
    for trial in sorted(trials, key=lambda trial: -trial.number):
        if trial.number > 0 and trial.config:
            return int(trial.config["device"].get("correction_bytes", 0))
    seen = load_seen(path)
    return None if seen is None else seen.correction_bytes(budget_bytes)


@dataclass(frozen=True)
class MemoryBook:
    """Learns from a study's runs. tokens: of a sequence in a run; path: see seen_path."""

    space: SearchSpace
    tokens: int
    path: Path

    def learn(self, config: EngineConfig, peak_bytes: int) -> None:
        """Keeps the error of a run within its budget; the first one corrects the space."""
        error_bytes = self._keep(config, peak_bytes)
        budget_bytes = config.budget.vram_bytes
        if error_bytes is None or not budget_bytes or self.space.correction_bytes is not None:
            return
        one = SeenMemory(1, error_bytes, error_bytes)
        self.space.correct(one.correction_bytes(budget_bytes))

    def shrunk(self, config: EngineConfig, peak_bytes: int) -> EngineConfig | None:
        """A config that exceeded its budget with as much smaller a cache, with which the space is
        corrected too; None if there is no smaller one."""
        error_bytes = self._keep(config, peak_bytes)
        if error_bytes is None:
            return None
        budget_bytes = config.budget.vram_bytes
        correction = SeenMemory(1, error_bytes, error_bytes).correction_bytes(budget_bytes)
        self.space.correct(max(correction, self.space.correction_bytes or 0))
        corrected = config.overlay({"device.correction_bytes": correction})
        needed = self._bytes(corrected.overlay({"budget.vram_bytes": 0}))
        record = record_bytes(config, self.space.facts)
        fewer = -(-(needed - budget_bytes) // record)
        smaller = int(config.cache.expert_bytes) - fewer * record
        try:
            found = corrected.overlay({"cache.expert_bytes": max(0, smaller)})
            return resolve(found, self.space.facts).config
        except InfeasibleError:
            return None

    def _keep(self, config: EngineConfig, peak_bytes: int) -> int | None:
        """Adds a run's error to what is kept; None where the equation does not say what a run with
        so few tokens takes. An unwritable folder keeps nothing."""
        if config.kv.elastic:
            return None
        used = {
            "kv.max_tokens": min(self.tokens, config.kv.max_tokens),
            "budget.vram_bytes": 0,
            "device.correction_bytes": 0,
        }
        error_bytes = peak_bytes - self._bytes(config.overlay(used))
        seen = load_seen(self.path) or SeenMemory(0, error_bytes, error_bytes)
        with contextlib.suppress(OSError):
            keep_seen(self.path, seen.with_run(error_bytes))
        return error_bytes

    def _bytes(self, config: EngineConfig) -> int:
        return resolve(config, self.space.facts).memory.total_bytes


def keep_seen(path: Path, seen: SeenMemory) -> None:
    """Write atomically. Raises OSError."""
    save_json(path, SEEN, asdict(seen))


def load_seen(path: Path) -> SeenMemory | None:
    """What was kept, None if there is nothing or after a damaged file was dropped."""

    def parse(data: dict[str, int]) -> SeenMemory:
        found = SeenMemory(**data)
        check_types(found)
        return found

    return load_json(path, SEEN, parse)
