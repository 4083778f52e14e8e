"""The Front page: the configs worth choosing from, with one of them beside the chart."""

from __future__ import annotations

import itertools
from typing import Any

import streamlit as st

from dashboard.address import keep, one_of, restore
from dashboard.charts.front import (
    MEANING,
    front_figure,
    front_figure_3d,
    selected_number,
    split_figure,
)
from dashboard.frames.front import (
    members_frame,
    origin_frame,
    points_frame,
    shown_metrics_frame,
    split_frame,
)
from dashboard.frames.studies import progress_line
from dashboard.limits import choose_limits
from dashboard.measured import MeasuredFront, measured_front
from dashboard.panel import choose_trial, draw_panel
from dashboard.reading import read_study
from dashboard.units import TITLES, figure, word
from engine.types import format_bytes
from tuner.definition.strict_yaml import dump_yaml
from tuner.deployment.defaults import changed_settings
from tuner.pareto.explain import explain
from tuner.pareto.front import Front
from tuner.pareto.limits import own_limits
from tuner.store.database import Database
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

THREE = "three"  # the view of three axes; the others are two names
CHART = "front"  # the chart's key, under which Streamlit keeps what was clicked


def main() -> None:
    """Draws the chart, the chosen trial beside it, the limits, and the details."""
    st.title("Front")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    measured = measured_front(snapshot, study)
    if now := progress_line(study):
        st.markdown(f"**Now** {now}")
    if not measured.complete:
        st.info("No trial ran to its end yet.")
        return
    top, controls = st.container(), st.container()
    with controls:
        view = _choose_view(measured.front)
        limits = choose_limits(study, measured.front)
    moved = limits != own_limits(study)
    if moved:
        measured = measured_front(snapshot, study, limits)
    with controls:
        st.caption(
            f"{measured.sentence} A slider at its loosest end is no limit; "
            + (
                "the limits differ from the study's own."
                if moved
                else "the limits are the study's own."
            )
        )
    if not measured.front.members:
        top.warning("No trial keeps these limits: loosen one.")
        return
    with top:
        trial = _draw_top(study, measured, view)
    st.markdown("**The front**")
    frame = members_frame(measured.front, measured.probability)
    st.dataframe(frame, hide_index=True, width="stretch", column_config=TITLES)
    _draw_details(trial)
    _draw_explanation(measured.front)


def _choose_view(front: Front) -> str:
    """Returns the two objectives to draw, separated by a comma, or THREE."""
    names = front.objectives
    views = [f"{x},{y}" for x, y in itertools.combinations(names, 2)]
    views = views or [f"{names[0]},{names[0]}"]
    if len(names) == 3:
        views.append(THREE)

    def said(view: str) -> str:
        if view == THREE:
            return "three axes, to turn around"
        pair = " and ".join(word(name) for name in view.split(","))
        rest = [name for name in names if name not in view.split(",")]
        return f"{pair}, {word(rest[0])} as colour" if rest else pair

    restore("view", "view", one_of(views))
    view = str(st.selectbox("What the chart shows", views, format_func=said, key="view"))
    keep("view", None if view == views[0] else view)
    return view


def _draw_top(study: StudySnapshot, measured: MeasuredFront, view: str) -> TrialSnapshot:
    """Draws the chart and the panel side by side, on a phone below one another; returns the chosen
    trial."""
    front = measured.front
    selection = getattr(st.session_state.get(CHART), "selection", None)
    clicked = None if view == THREE else selected_number(selection)
    number = choose_trial(study, front, clicked)
    trial = front.pick(str(number))
    budget = study.definition["budget"]["vram_bytes"]
    within = f" in {format_bytes(budget)}" if budget else ""
    st.caption(
        f"The configs worth choosing from. A point is a config, one way to run the model{within}, "
        f"measured on this machine. {'' if view == THREE else 'Click one to see it.'}"
    )
    chart, panel = st.columns([3, 2], gap="medium")
    points = points_frame(front, measured.probability)
    with chart:
        _draw_chart(measured, points, view, number)
    with panel:
        draw_panel(study, front, trial)
    kinds = [kind for kind in MEANING if (points["kind"] == kind).any()]
    meanings = ". ".join(MEANING[kind] for kind in kinds)
    if view == THREE:
        meanings = meanings.replace("★", "◆")
    st.caption(f"{meanings}. Bars are 95 % intervals.")
    return trial


def _draw_chart(measured: MeasuredFront, points: Any, view: str, number: int) -> None:
    front = measured.front
    said = f"{measured.sentence} Recommended is trial {front.knee.number}."
    if view == THREE:
        st.plotly_chart(front_figure_3d(points, *front.objectives), key="solid", alt=said)
    else:
        x, y = view.split(",")
        third = next((name for name in front.objectives if name not in (x, y)), None)
        drawn = front_figure(points, x, y, third, number)
        st.plotly_chart(drawn, on_select="rerun", selection_mode="points", key=CHART, alt=said)


def _draw_details(trial: TrialSnapshot) -> None:
    st.subheader(f"Details of trial {trial.number}")
    split = split_frame(trial)
    if len(split):
        st.markdown("**Where the time of a token goes**")
        parts = ", ".join(
            f"{part} {figure(ms, 'ms')}" for part, ms in split.itertuples(index=False)
        )
        st.plotly_chart(split_figure(split), key="split", alt=f"Time of a token: {parts}")
    left, right = st.columns(2)
    with left:
        st.markdown("**Measured, with 95 % intervals**")
        _table(shown_metrics_frame(trial))
    with right:
        st.markdown("**Config, where it differs from the defaults**")
        changed = changed_settings(trial.config or {})
        st.code(dump_yaml(changed, compact=True), language="yaml")
        st.markdown("**Where the figures come from**")
        _table(origin_frame(trial))


def _table(frame: Any) -> None:
    st.dataframe(frame, hide_index=True, width="stretch")


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
