"""Compares the published figures of a policy with those measured here, and with their bound.

The bound of a decode or prefill figure: a row cannot be faster than its own work without any wait,
nor than reading what even Belady's rule must load. It follows from the row's time split and bytes,
so it holds for this model on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from engine.contract.report import Metric
from tuner.bench.report.rounds import PART, PREFILL_PART, busy_ms, least_read_ms, mean
from tuner.bench.run import RowResult
from tuner.definition.policies import PolicyFile, Published
from tuner.statistics import paired_ratio

Verdict = Literal["reached", "within the interval", "not reached", "not measured"]
Bottleneck = Literal["compute", "transfer"]


class _Phase(NamedTuple):
    """The names of a phase's time split and bound in a row's metrics."""

    part: str
    wall: str
    least: str


_DECODE = _Phase(PART, "wall_ms_per_token", "oracle_bytes_per_token")
_PREFILL = _Phase(PREFILL_PART, "prefill_wall_ms_per_token", "oracle_prefill_bytes_per_token")
_PHASES = {"decode_tps": _DECODE, "tpot_ms": _DECODE, "prefill_tps": _PREFILL}


@dataclass(frozen=True)
class PublishedComparison:
    """A published ratio and ours.

    over: the authors' baseline; baseline: the row of this bench that stands for it; limit_ratio:
    the ratio that no policy could exceed with this row's work; bottleneck: what sets that limit;
    sentence: a summary for users.
    """

    row: str
    metric: str
    over: str
    published: float
    setting: str
    baseline: str | None
    measured: Metric | None
    verdict: Verdict
    limit_ratio: float | None
    bottleneck: Bottleneck | None
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


@dataclass(frozen=True)
class _Limit:
    """The limit of a ratio. hard: the ratio even if policy decisions took no time."""

    ratio: float
    hard: float
    bottleneck: Bottleneck
    reason: str


def compare_published(
    results: Sequence[RowResult], presets: Mapping[str, PolicyFile]
) -> list[PublishedComparison]:
    """One comparison for each published figure of each whole policy row."""
    found = []
    for row in results:
        if row.policy is None or row.without is not None:
            continue
        for entry in presets[row.policy].published:
            if not _is_its_own_baseline(row, entry):
                found.append(_compare(row, entry, results))
    return found


def smaller_is_better(metric: str) -> bool:
    """Whether a smaller value is better: true of times and bytes, by name; rates are better
    larger."""
    return "_ms" in metric or "bytes" in metric


def _compare(row: RowResult, entry: Published, results: Sequence[RowResult]) -> PublishedComparison:
    over = entry.over if isinstance(entry.over, str) else _words(entry.over)
    baseline = next((other for other in results if _is_baseline(other, row, entry)), None)
    measured, limit = None, None
    if baseline is not None:
        own, other = row.values.get(entry.metric, ()), baseline.values.get(entry.metric, ())
        measured = paired_ratio(own, other)
        limit = _limit(row, baseline, entry.metric)
    verdict = _verdict(entry, measured)
    return PublishedComparison(
        row=row.name,
        metric=entry.metric,
        over=over,
        published=entry.ratio,
        setting=entry.setting,
        baseline=baseline.name if baseline is not None else None,
        measured=measured,
        verdict=verdict,
        limit_ratio=limit.ratio if limit is not None else None,
        bottleneck=limit.bottleneck if limit is not None else None,
        sentence=_sentence(entry, row, baseline, verdict, limit),
    )


def _is_its_own_baseline(row: RowResult, entry: Published) -> bool:
    return isinstance(entry.over, dict) and row.asked.overlay(entry.over) == row.asked


def _is_baseline(other: RowResult, row: RowResult, entry: Published) -> bool:
    if other.model != row.model:
        return False
    if isinstance(entry.over, str):
        whole = other.policy == entry.over and other.without is None
        return whole and dict(other.settings) == dict(row.settings)
    if other.policy != row.policy or other.asked != row.asked.overlay(entry.over):
        return False
    ran = other.asked.from_dict(other.config)  # a plan may have changed the requested config
    return ran.overlay(entry.over) == ran


def _verdict(entry: Published, measured: Metric | None) -> Verdict:
    if measured is None:
        return "not measured"
    sign = -1 if smaller_is_better(entry.metric) else 1
    best = measured.low if sign < 0 else measured.high
    if sign * measured.value >= sign * entry.ratio:
        return "reached"
    return "within the interval" if sign * best >= sign * entry.ratio else "not reached"


def _limit(row: RowResult, baseline: RowResult, metric: str) -> _Limit | None:
    phase = _PHASES.get(metric)
    if phase is None:
        return None
    parts, reads = busy_ms(row, phase.part), least_read_ms(row, phase.least)
    base_ms, own_ms = mean(baseline, phase.wall), mean(row, phase.wall)
    if not parts or not base_ms or not own_ms:
        return None
    busy, read = sum(parts) / len(parts), sum(reads) / len(reads) if reads else 0.0
    least = max(busy, read)
    hard = max(busy - (mean(row, f"{phase.part}policy") or 0.0), read)
    if not hard:
        return None
    bottleneck: Bottleneck = "compute" if busy >= read else "transfer"
    work = (
        f"this row's own work takes {busy:.3g} ms a token without any wait"
        if bottleneck == "compute"
        else f"reading what even Belady's rule must load takes {read:.3g} ms a token"
    )
    reason = f"{work}, {baseline.name} takes {base_ms:.3g} ms in all"
    if metric == "tpot_ms":  # a step of several sequences takes longer than a token
        own, other = mean(row, metric), mean(baseline, metric)
        if not own or not other:
            return None
        return _Limit(own * least / own_ms / other, own * hard / own_ms / other, bottleneck, reason)
    return _Limit(base_ms / least, base_ms / hard, bottleneck, reason)


def _sentence(
    entry: Published,
    row: RowResult,
    baseline: RowResult | None,
    verdict: Verdict,
    limit: _Limit | None,
) -> str:
    if verdict == "not measured":
        return _why_not_measured(entry, row, baseline)
    if verdict == "reached":
        return "reached"
    if limit is None:
        return f"{verdict}; no bound is known: this figure covers prompts and decoding together"
    bound = f"the bound is {limit.ratio:.3g}: {limit.reason}"
    sign = -1 if smaller_is_better(entry.metric) else 1
    if verdict == "not reached" and sign * entry.ratio > sign * limit.hard:
        return f"not reached, and no policy could: {bound}"
    return f"{verdict}; {bound}"


def _why_not_measured(entry: Published, row: RowResult, baseline: RowResult | None) -> str:
    for failed in (row, baseline):
        if failed is not None and failed.error is not None:
            return f"not measured: {failed.name} failed"
    if baseline is not None:
        return f"not measured: {entry.metric} is missing"
    if isinstance(entry.over, str):
        return f"not measured: add {entry.over} to --policies"
    values = " ".join(
        f"--set {path}={value},{_value(row, path)}" for path, value in entry.over.items()
    )
    return f"not measured: add {values}"


def _value(row: RowResult, path: str) -> Any:
    return row.asked.flat().get(path)


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} = {value}" for path, value in settings.items())
