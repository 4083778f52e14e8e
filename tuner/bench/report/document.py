"""Builds the one JSON document of a bench: rows, derived figures, provenance."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from engine.contract.requests import Workload
from engine.facts.machine import probe
from tuner.bench.report.derived import derived_metrics
from tuner.bench.report.effects import mechanism_effects
from tuner.bench.report.published import compare_published
from tuner.bench.run import BenchOutcome
from tuner.definition.policies import PolicyFile
from tuner.definition.workload import workload_hash
from tuner.deployment.export import source_commit
from tuner.folders import SOURCE, cache_folder
from tuner.quality.key import package_versions


def bench_document(
    outcome: BenchOutcome,
    presets: Mapping[str, PolicyFile],
    work: Workload,
    repeats: int,
    seed: int,
) -> dict[str, Any]:
    """Builds the JSON-ready document. presets: policies by the name that rows refer to."""
    results = outcome.results
    derived = derived_metrics(results)
    return {
        "interrupted": outcome.interrupted,
        "rows": [result.to_json(results[0]) for result in results],
        "derived": [
            {"row": row.name, **{name: asdict(metric) for name, metric in found.items()}}
            for row, found in zip(results, derived, strict=True)
        ],
        "ablation": [effect.to_json() for effect in mechanism_effects(results)],
        "published": [entry.to_json() for entry in compare_published(results, presets)],
        "machine": probe(cache_folder()).to_json(),
        "provenance": _provenance(work, repeats, seed),
    }


def _provenance(work: Workload, repeats: int, seed: int) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["tune", *sys.argv[1:]],
        "workload": work.name,
        "workload_hash": workload_hash(work),
        "prompts": len(work.prompts),
        "chat": work.chat,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "sequences": work.sequences,
        "repeats": repeats,
        "seed": seed,
        "versions": package_versions(),
        "commit": source_commit(SOURCE),
    }
