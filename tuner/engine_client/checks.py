"""Refuses what an engine reports if its figures cannot be true."""

from __future__ import annotations

import math

from engine.contract.report import QualityReport, Report


def check_report(report: Report) -> Report:
    """The report; raises ValueError."""
    for name, metric in report.metrics.items():
        if not math.isfinite(metric.value):
            raise ValueError(f"{name} is {metric.value}")
    for name in ("output_tps", "tpot_ms"):
        if name not in report.metrics:
            raise ValueError(f"the report has no {name}")
        if report.metrics[name].value <= 0:
            raise ValueError(f"{name} is {report.metrics[name].value}, so nothing was generated")
    return report


def check_quality(report: QualityReport) -> QualityReport:
    """The report; raises ValueError."""
    if report.bits_per_byte is not None and not (
        math.isfinite(report.bits_per_byte) and report.bits_per_byte > 0
    ):
        raise ValueError(f"bits per byte are {report.bits_per_byte}")
    for result in report.tasks:
        if math.isnan(result.value):
            raise ValueError(f"{result.metric} of {result.task} is NaN")
    for kld in (report.kld_mean, report.prefill_kld_mean):
        if kld is not None and not math.isfinite(kld):
            raise ValueError(f"the divergence from 16 bits is {kld}")
    return report
