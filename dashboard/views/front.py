"""The Front page: the configs worth choosing from, under adjustable limits."""

from __future__ import annotations

import streamlit as st

from dashboard.charts.front import front_figure, front_figure_3d, selected_number, split_figure
from dashboard.exporting import draw_exports
from dashboard.frames.front import (
    members_frame,
    metrics_frame,
    origin_frame,
    points_frame,
    split_frame,
)
from dashboard.limits import choose_limits
from dashboard.measured import MeasuredFront, measured_front
from dashboard.reading import read_study
from tuner.definition.strict_yaml import dump_yaml
from tuner.deployment.defaults import changed_settings
from tuner.pareto.explain import explain
from tuner.pareto.front import Front
from tuner.pareto.limits import own_limits
from tuner.store.database import Database
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

TWO, THREE = "two objectives", "three objectives"
SOURCES = {
    "searched": "Its figures are searched: of the repeats during the search.",
    "confirmed": "Its figures are confirmed: of fresh processes after the search.",
}


def main() -> None:
    """Draws the chart, the chosen trial and its alternatives."""
    st.title("Front")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    measured = measured_front(snapshot, study)
    if not measured.complete:
        st.info("No trial ran to its end yet.")
        return
    limits = choose_limits(study, measured.front)
    moved = limits != own_limits(study)
    if moved:
        measured = measured_front(snapshot, study, limits)
    front = measured.front
    st.caption(
        f"{measured.sentence} A slider at its loosest end is no limit; "
        + (
            "the limits differ from the study's own."
            if moved
            else "the limits are the study's own."
        )
    )
    if not front.members:
        st.warning("No trial keeps these limits: loosen one.")
        return
    number = _draw_chart(study, measured)
    st.dataframe(members_frame(front, measured.probability), hide_index=True, width="stretch")
    _draw_trial(study, front, front.pick(str(number)))
    _draw_explanation(front)


def _draw_chart(study: StudySnapshot, measured: MeasuredFront) -> int:
    """Draws the scatter plot; returns the number of the chosen trial."""
    front = measured.front
    points = points_frame(front, measured.probability)
    said = f"{measured.sentence} Recommended is trial {front.knee.number}."
    names = list(front.objectives)
    view = TWO
    if len(names) == 3:
        view = st.segmented_control("View", [TWO, THREE], default=TWO, key="view") or TWO
    if view == THREE:
        st.plotly_chart(front_figure_3d(points, *names), key="solid", alt=said)
        return _choose_trial(study, front, None)
    left, right = st.columns(2)
    x = str(left.selectbox("Horizontal", names, index=0, key="x"))
    y = str(right.selectbox("Vertical", names, index=len(names) - 1, key="y"))
    figure = front_figure(points, x, y)
    event = st.plotly_chart(
        figure, on_select="rerun", selection_mode="points", key="front", alt=said
    )
    return _choose_trial(study, front, selected_number(getattr(event, "selection", None)))


def _choose_trial(study: StudySnapshot, front: Front, clicked: int | None) -> int:
    """Returns the trial clicked in the chart or chosen in the list, whichever was last; starts at
    the recommended one."""
    numbers = [trial.number for trial in front.trials if trial.state == "COMPLETE"]
    key, last = f"trial-{study.name}", f"clicked-{study.name}"
    if clicked in numbers and clicked != st.session_state.get(last):
        st.session_state[key] = clicked
    st.session_state[last] = clicked
    if st.session_state.get(key) not in numbers:
        st.session_state[key] = front.knee.number
    return int(st.selectbox("Trial (or click a point of two objectives)", numbers, key=key))


def _draw_trial(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> None:
    recommended = " (recommended)" if trial.id == front.knee.id else ""
    st.subheader(f"Trial {trial.number}{recommended}")
    st.caption(SOURCES[trial.source])
    with st.container(horizontal=True):
        for name in front.objectives:
            st.metric(name, f"{trial.scores[name]:.4g}", border=True)
    split = split_frame(trial)
    if len(split):
        st.markdown("**Where the time of a token goes**")
        parts = ", ".join(f"{part} {ms:.3g} ms" for part, ms in split.itertuples(index=False))
        st.plotly_chart(split_figure(split), key="split", alt=f"Time of a token: {parts}")
    left, right = st.columns(2)
    with left:
        st.markdown("**Measured, with 95 % intervals**")
        st.dataframe(metrics_frame(trial), hide_index=True, width="stretch")
        st.markdown("**Where the figures come from**")
        st.dataframe(origin_frame(trial), hide_index=True, width="stretch")
    with right:
        st.markdown("**Config, where it differs from the defaults**")
        changed = changed_settings(trial.config or {})
        st.code(dump_yaml(changed, compact=True), language="yaml", height=560)
    draw_exports(study, front, trial)


def _draw_explanation(front: Front) -> None:
    found = explain(front, front.trials)
    if found is None:
        return
    st.subheader("Why, and what else")
    if found.bottleneck is not None:
        st.markdown(f"Trial {found.trial}: {found.bottleneck.sentence}.")
    for trade_off in found.trade_offs:
        st.markdown(f"- Instead, {trade_off.sentence}")


if __name__ == "__main__":
    main()
