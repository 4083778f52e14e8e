"""Sliders for the limits; they start at the study's own limits, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from tuner.definition.study import Constraints
from tuner.pareto.front import Front
from tuner.pareto.limits import own_limits
from tuner.store.snapshots import StudySnapshot

STEPS = 100
# (field, label, whether the loosest end is the lowest)
SLIDERS = (
    ("min_quality", "Least quality (--min-quality)", True),
    ("max_ttft_ms", "Longest ms to the first token (--max-ttft-ms)", False),
    ("max_tpot_ms", "Longest ms per token (--max-tpot-ms)", False),
)


def choose_limits(study: StudySnapshot, front: Front) -> Constraints:
    """Returns the limits set on the sliders. front: its trials' values span the sliders."""
    own = own_limits(study)
    chosen: dict[str, float | None] = {}
    columns = st.columns(len(SLIDERS))
    for column, (field, label, rising) in zip(columns, SLIDERS, strict=True):
        limit = getattr(own, field)
        with column:
            chosen[field] = _slide(f"{study.name}-{field}", label, rising, limit, front, field)
    return Constraints(**chosen)


def _slide(
    key: str, label: str, rising: bool, own: float | None, front: Front, field: str
) -> float | None:
    ends = _ends(key, [*_values(front, field), *([own] if own is not None else [])])
    if ends is None:
        return own
    low, high = ends
    loosest = low if rising else high
    start = loosest if own is None else own
    step = (high - low) / STEPS
    position = st.slider(label, low, high, start, step, format="%.4g", key=f"limit-{key}")
    if abs(position - start) < step / 2:
        return own
    return None if abs(position - loosest) < step / 2 else float(position)


def _ends(key: str, values: Sequence[float]) -> tuple[float, float] | None:
    """Returns a slider's ends, fixed when first seen so that new trials do not move it."""
    pinned = st.session_state.get(f"ends-{key}")
    if pinned is None and values and min(values) < max(values):
        pinned = st.session_state[f"ends-{key}"] = (float(min(values)), float(max(values)))
    return None if pinned is None else (float(pinned[0]), float(pinned[1]))


def _values(front: Front, field: str) -> list[float]:
    if field == "min_quality":
        return [trial.scores["quality"] for trial in front.trials if "quality" in trial.scores]
    name = field.removeprefix("max_")
    return [trial.metrics[name].value for trial in front.trials if name in trial.metrics]
