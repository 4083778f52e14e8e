"""The Streamlit program: `streamlit run dashboard/app.py -- --storage URL`. Reads, never writes."""

from __future__ import annotations

import argparse
import sys

import streamlit as st
import yaml

from dashboard import charts, frames
from tuner.curve import fronts_by_budget
from tuner.errors import TunerError
from tuner.explain import Explanation, explain
from tuner.export import render
from tuner.folders import default_storage
from tuner.front import Front, front_of
from tuner.store.database import open_read_only
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot, TelemetrySnapshot, TrialSnapshot

ALL = "All studies"


def main() -> None:
    """Draw the page that the address and the sidebar ask for."""
    st.set_page_config(page_title="expertune", layout="wide")
    try:
        store = Store(open_read_only(_storage()))
        names = store.study_names()
        chosen = _choose_study(names)
        if chosen == ALL:
            _draw_studies(store.studies())
            _draw_deployments(store.telemetry())
        else:
            study = store.study(chosen)
            _draw_study(study, store.trials(study))
    except TunerError as error:
        st.error(str(error))


def _storage() -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", default=None)
    arguments, _ = parser.parse_known_args(sys.argv[1:])
    return arguments.storage or default_storage()


def _choose_study(names: tuple[str, ...]) -> str:
    options = [ALL, *names]
    asked = st.query_params.get("study", ALL)
    index = options.index(asked) if asked in options else 0
    chosen = st.sidebar.selectbox("Study", options, index=index, key="study")
    st.sidebar.button("Refresh", key="refresh")
    return str(chosen)


def _draw_studies(studies: tuple[StudySnapshot, ...]) -> None:
    st.title("Studies")
    if not studies:
        st.info("There are no studies yet: run `tune --model demo --vram 60MB`.")
        return
    st.dataframe(frames.studies_frame(studies), hide_index=True, width="stretch")
    st.caption("Choose one at the left to see its front.")


def _draw_deployments(windows: tuple[TelemetrySnapshot, ...]) -> None:
    """What deployments said last; `re-tune` where their texts route otherwise than before."""
    if windows:
        st.subheader("Deployments")
        st.dataframe(frames.deployments_frame(windows), hide_index=True, width="stretch")


def _draw_explanation(found: Explanation | None) -> None:
    if found is None:
        return
    if found.binding is not None:
        st.markdown(f"Trial {found.trial}: {found.binding.sentence}.")
    for exchange in found.exchanges:
        st.markdown(f"- Instead, {exchange.sentence}")


def _draw_study(study: StudySnapshot, trials: tuple[TrialSnapshot, ...]) -> None:
    front = front_of(study, trials)
    st.title(study.name)
    counts = ", ".join(f"{n} {state.lower()}" for state, n in study.trials_by_state.items())
    st.caption(f"{study.model} · {study.state.lower()} · {study.trials} trials ({counts})")
    if front.members:
        number = _draw_front(front)
        _draw_trial(study, front, front.pick(str(number)))
        st.subheader("Why, and what else")
        _draw_explanation(explain(front, trials))
        curve = frames.curve_frame(fronts_by_budget(study, trials))
        if len(curve):
            st.subheader("Budget curve")
            st.plotly_chart(charts.curve_figure(curve), key="curve")
            st.dataframe(curve, hide_index=True, width="stretch")
    else:
        st.info("No trial ran to its end within the limits yet.")
    st.subheader("Trials")
    st.dataframe(frames.trials_frame(trials), hide_index=True, width="stretch")
    failures = frames.failures_frame(trials)
    if len(failures):
        st.subheader("Failures by class")
        st.plotly_chart(charts.failures_figure(failures), key="failures")


def _draw_front(front: Front) -> int:
    """The scatter plot; the number of the chosen trial."""
    st.subheader("Pareto front")
    names = list(front.objectives)
    left, right = st.columns(2)
    x = str(left.selectbox("Horizontal", names, index=0, key="x"))
    y = str(right.selectbox("Vertical", names, index=len(names) - 1, key="y"))
    figure = charts.front_figure(frames.points_frame(front), x, y)
    event = st.plotly_chart(figure, on_select="rerun", selection_mode="points", key="front")
    clicked = charts.selected_number(getattr(event, "selection", None))
    numbers = [t.number for t in front.trials if t.state == "COMPLETE"]
    if clicked in numbers and clicked != st.session_state.get("clicked"):
        st.session_state["clicked"] = clicked
        st.session_state["trial"] = clicked
    if st.session_state.get("trial") not in numbers:
        st.session_state["trial"] = front.knee.number
    return int(st.selectbox("Trial (or click a point)", numbers, key="trial"))


def _draw_trial(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> None:
    recommended = " (recommended)" if trial.id == front.knee.id else ""
    st.subheader(f"Trial {trial.number}{recommended}")
    for column, name in zip(st.columns(len(front.objectives)), front.objectives, strict=True):
        column.metric(name, f"{trial.scores[name]:.4g}")
    left, right = st.columns(2)
    left.dataframe(frames.metrics_frame(trial), hide_index=True, width="stretch")
    right.code(yaml.safe_dump(dict(trial.config or {}), sort_keys=False), language="yaml")
    split = frames.split_frame(trial)
    if len(split):
        st.markdown("**Where the time of a token goes**")
        st.plotly_chart(charts.split_figure(split), key="split")
    st.download_button(
        "Export as YAML",
        render(study, front, trial),
        file_name=f"expertune-{study.name}-{trial.number}.yaml",
        mime="application/yaml",
        key="export",
    )


if __name__ == "__main__":
    main()
