"""Bench results made by hand, and documents of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from tuner.bench.report.document import bench_document
from tuner.bench.run import BenchOutcome, RowResult
from tuner.definition.policies import PolicyFile, load_policy

UNITS = {"_ms": "ms", "_tps": "tokens/s", "bytes_per_s": "bytes/s", "bytes_per_token": "bytes"}


def make_row(
    policy: str | None,
    *,
    without: str | None = None,
    settings: Mapping[str, Any] | None = None,
    config: EngineConfig | None = None,
    name: str | None = None,
    error: str | None = None,
    environment: Mapping[str, Any] | None = None,
    **values: list[float],
) -> RowResult:
    """A measured row. values: by metric, `__` for a dot, one a round."""
    engine = load_policy(policy).engine if policy else {}
    asked = config or EngineConfig().overlay({**engine, **(settings or {})})
    words = [policy or "", f"without {without}" if without else ""]
    words += [f"{path}={value}" for path, value in (settings or {}).items()]
    row = RowResult(
        name or " ".join(word for word in words if word),
        asked.to_dict(),
        asked=asked,
        model="m",
        policy=policy,
        without=without,
        settings=settings or {},
        error=error,
        environment=dict(environment or {}),
    )
    for key, found in values.items():
        metric = key.replace("__", ".")
        row.values[metric] = found
        row.units[metric] = next((unit for end, unit in UNITS.items() if end in metric), "fraction")
    return row


def make_document(*rows: RowResult, presets: Mapping[str, PolicyFile] | None = None) -> Any:
    """What `tune bench --json` would print."""
    known = presets or {row.policy: load_policy(row.policy) for row in rows if row.policy}
    return bench_document(BenchOutcome(list(rows)), known, Workload("w", ("text",)), 2, 0)


def timed(
    *, wall: float, busy: float, policy: float = 0.0, **values: list[float]
) -> dict[str, list[float]]:
    """Metrics of a row that takes `wall` ms a token, of which `busy` is no wait."""
    return {
        "wall_ms_per_token": [wall] * 2,
        "decode_tps": [1000 / wall] * 2,
        "tpot_ms": [wall] * 2,
        "time_ms_per_token__compute": [busy - policy] * 2,
        "time_ms_per_token__policy": [policy] * 2,
        "time_ms_per_token__disk_wait": [wall - busy] * 2,
        **values,
    }
