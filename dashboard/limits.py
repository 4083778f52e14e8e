"""Sliders for the limits; they start at the study's own limits or those of the address, and nothing
is written."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard.address import keep, restore
from tuner.definition.study import Constraints
from tuner.pareto.front import Front
from tuner.pareto.limits import own_limits
from tuner.store.snapshots import StudySnapshot

STEPS = 100
# (field, label, help, whether the loosest end is the lowest)
SLIDERS = (
    ("min_quality", "At least this quality", "--min-quality; 1 is the model at 16 bits", True),
    ("max_ttft_ms", "At most these ms to the first token", "--max-ttft-ms", False),
    ("max_tpot_ms", "At most these ms per token", "--max-tpot-ms", False),
)


def choose_limits(study: StudySnapshot, front: Front) -> Constraints:
    """Returns the limits set on the sliders. front: its trials' values span the sliders."""
    chosen: dict[str, float | None] = {}
    columns = st.columns(len(SLIDERS))
    for column, (field, label, said, rising) in zip(columns, SLIDERS, strict=True):
        with column:
            chosen[field] = _slide(study, field, label, said, rising, front)
    return Constraints(**chosen)


def _slide(
    study: StudySnapshot, field: str, label: str, said: str, rising: bool, front: Front
) -> float | None:
    own = getattr(own_limits(study), field)
    key = f"{study.name}-{field}"
    widget = f"limit-{key}"
    ends = _ends(key, [*_values(front, field), *([own] if own is not None else [])])
    if ends is None:
        return None if own is None else float(own)
    low, high = ends
    loosest = low if rising else high
    start = loosest if own is None else own
    step = (high - low) / STEPS
    restore(widget, field, lambda text: min(high, max(low, float(text))))
    st.session_state.setdefault(widget, start)
    position = float(st.slider(label, low, high, step=step, format="%.4g", key=widget, help=said))
    if abs(position - start) < step / 2:
        keep(field, None)
        return None if own is None else float(own)
    keep(field, f"{position:.10g}")
    return None if abs(position - loosest) < step / 2 else position


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
