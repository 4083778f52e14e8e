"""The panel beside the chart: one trial in a few lines, and its export."""

from __future__ import annotations

import streamlit as st

from dashboard.address import keep, restore
from dashboard.exporting import draw_exports
from dashboard.units import interval, objective, word
from tuner.pareto.explain import bottleneck_of
from tuner.pareto.front import Front
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

SOURCES = {
    "searched": "Measured during the search.",
    "confirmed": "Measured again in fresh processes after the search.",
}
# The searched settings in plain words.
SETTINGS = {
    "cache.expert_bytes": "memory for experts",
    "prefetch.depth": "layers fetched ahead",
    "precision.bits": "bits of an expert's weight",
    "precision.non_expert_bits": "bits of the other weights",
    "precision.activation_bits": "bits of what weights are multiplied by",
    "batch.count": "batches that share a load",
    "placement.name": "where experts lie",
    "prefill.chunk_tokens": "prompt tokens at once",
    "budget.vram_bytes": "memory in bytes",
}
LEAST_QUALITY = "with 16 bits it is 1"


def choose_trial(study: StudySnapshot, front: Front, clicked: int | None) -> int:
    """Returns the trial that was clicked or chosen in the list before, whichever was last; begins
    with that of the address, else the recommended one."""
    numbers = _numbers(front)
    key, last = _key(study), f"clicked-{study.name}"
    if clicked in numbers and clicked != st.session_state.get(last):
        st.session_state[key] = clicked
    st.session_state[last] = clicked
    restore(key, "trial", int)
    if st.session_state.get(key) not in numbers:
        st.session_state[key] = front.knee.number
    number = int(st.session_state[key])
    keep("trial", None if number == front.knee.number else str(number))
    return number


def draw_panel(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> None:
    """Draws the trial's figures, what takes its time, its settings, and the export."""
    recommended = " (recommended)" if trial.id == front.knee.id else ""
    st.subheader(f"Trial {trial.number}{recommended}")
    st.markdown("  \n".join(_figure_line(trial, name) for name in front.objectives))
    found = bottleneck_of(trial)
    slow = f" {found.sentence[0].upper()}{found.sentence[1:]}." if found else ""
    st.caption(f"{SOURCES[trial.source]}{slow}")
    st.markdown("  \n".join(_setting_line(*item) for item in trial.params.items()))
    st.selectbox(
        "Another trial (or click a point)",
        _numbers(front),
        key=_key(study),
        format_func=lambda number: f"trial {number}",
    )
    draw_exports(study, front, trial)


def _figure_line(trial: TrialSnapshot, name: str) -> str:
    metric = trial.figures.get(name)
    span = interval(metric, with_unit=False) if metric else ""
    beside = f" (95 %: {span})" if span else ""
    if name == "quality":
        beside = f" ({LEAST_QUALITY})"
    return f"**{objective(trial.scores[name], name)}** {word(name)}{beside}"


def _setting_line(path: str, value: object) -> str:
    words = SETTINGS.get(path)
    return f"`{path}: {value}`" + (f" {words}" if words else "")


def _numbers(front: Front) -> list[int]:
    return [trial.number for trial in front.trials if trial.state == "COMPLETE"]


def _key(study: StudySnapshot) -> str:
    return f"trial-{study.name}"
