"""The effect of each mechanism of a policy: the policy over itself without the mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine.contract.report import Metric
from tuner.bench.run import RowResult
from tuner.statistics import paired_ratio

EFFECTS = ("output_tps", "decode_tps", "prefill_tps", "ttft_ms", "transfer_bytes_per_token")


@dataclass(frozen=True)
class Effect:
    """One mechanism's effect. ratios: by metric, the whole policy over the row without the
    mechanism, paired by round."""

    row: str
    mechanism: str
    without: str
    ratios: dict[str, Metric]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON-ready dict."""
        return asdict(self)


def mechanism_effects(results: Sequence[RowResult]) -> list[Effect]:
    """One effect for each row without a mechanism whose whole policy was measured beside it."""
    found = []
    for part in results:
        whole = next((row for row in results if _is_whole(row, part)), None)
        if part.without is None or whole is None:
            continue
        ratios = {
            name: paired_ratio(whole.values.get(name, ()), part.values.get(name, ()))
            for name in EFFECTS
        }
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        found.append(Effect(whole.name, part.without, part.name, known))
    return found


def _is_whole(row: RowResult, part: RowResult) -> bool:
    same = (row.policy, row.settings, row.model) == (part.policy, part.settings, part.model)
    return same and row.without is None
