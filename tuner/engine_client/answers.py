"""Reads the answers of an engine: values of the right types, with figures that can be.

Raises one of CONTENT_ERRORS, or ConfigError, for any other.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.report import QualityReport, Report
from engine.facts.machine import MachineProfile
from engine.inputs.typed import check_types
from engine.memory.plan import MemoryPlan, Resolved


def read_device(result: dict[str, Any]) -> tuple[str, int | None, str | None]:
    """The opened device, the bytes of its driver's context, and the UUID of its card, if known."""
    context_bytes, card = result.get("context_bytes"), result.get("card")
    if type(context_bytes) not in (int, type(None)) or not isinstance(card, str | None):
        raise ValueError(f"the device has context_bytes {context_bytes!r:.40}, card {card!r:.40}")
    return str(result.get("device", "cpu")), context_bytes, card


def read_opened(result: dict[str, Any]) -> tuple[dict[str, Any], int, bool]:
    """The facts of its machine, the bytes that its process takes without a model, and whether
    micro-batches decode together (ModelTimings)."""
    hardware, runtime_bytes = dict(result.get("hardware", {})), int(result.get("runtime_bytes", 0))
    return hardware, runtime_bytes, bool(result.get("decodes_together", False))


def read_progress(event: dict[str, Any]) -> tuple[str, int, int]:
    """The stage, the steps done, and those in all."""
    return str(event["stage"]), int(event["done"]), int(event["total"])


def read_profile(result: dict[str, Any]) -> MachineProfile:
    """The profile of its machine; what else it says is left out."""
    known = {field.name for field in dataclasses.fields(MachineProfile)}
    found = MachineProfile(**{name: value for name, value in result.items() if name in known})
    check_types(found)
    return found


def read_configured(result: dict[str, Any]) -> Resolved:
    """The resolved config and its memory."""
    memory = {key: value for key, value in result["memory"].items() if key != "total_bytes"}
    return Resolved(EngineConfig.from_dict(result["config"]), MemoryPlan(**memory))


def read_report(result: dict[str, Any]) -> Report:
    """A report whose speeds are above zero."""
    report = Report.from_json(result)
    for name, metric in report.metrics.items():
        if not math.isfinite(metric.value):
            raise ValueError(f"{name} is {metric.value}")
    for name in ("output_tps", "tpot_ms"):
        if name not in report.metrics:
            raise ValueError(f"the report has no {name}")
        if report.metrics[name].value <= 0:
            raise ValueError(f"{name} is {report.metrics[name].value}, so nothing was generated")
    return report


def read_quality(result: dict[str, Any]) -> QualityReport:
    """A quality report without a NaN."""
    report = QualityReport.from_json(result)
    if report.bits_per_byte is not None and not (
        math.isfinite(report.bits_per_byte) and report.bits_per_byte > 0
    ):
        raise ValueError(f"bits per byte are {report.bits_per_byte}")
    for one in report.tasks:
        if math.isnan(one.value):
            raise ValueError(f"{one.metric} of {one.task} is NaN")
    for kld in (report.kld_mean, report.prefill_kld_mean):
        if kld is not None and not math.isfinite(kld):
            raise ValueError(f"the divergence from 16 bits is {kld}")
    return report
