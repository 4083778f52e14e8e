"""The Experts page: activations, hit rates and prefetch precision of one trial."""

from __future__ import annotations

import streamlit as st

from dashboard.charts.experts import activations_figure, rates_figure
from dashboard.frames.experts import activations_frame, layers_frame, rates_frame
from dashboard.measured import measured_front
from dashboard.reading import read_study
from engine.contract.report import ExpertUse
from tuner.pareto.front import Front
from tuner.store.database import Database
from tuner.store.overview import Overview
from tuner.store.snapshots import StudySnapshot, TrialSnapshot


def main() -> None:
    """Draws the page for the chosen trial."""
    st.title("Experts")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    front = measured_front(snapshot, study).front
    if not front.trials:
        st.info("No trial ran to its end yet.")
        return
    trial = _choose(study, front)
    st.dataframe(rates_frame(trial), hide_index=True, width="stretch")
    use = Overview(snapshot).expert_use(trial.configuration_id or 0, study.machine_id)
    if use is None:
        st.info(
            "This trial was measured by a release that did not keep counts by layer and expert: "
            "measure it again to see them."
        )
        return
    _draw_use(use)


def _choose(study: StudySnapshot, front: Front) -> TrialSnapshot:
    """Lets the user choose a trial; starts at the recommended one."""
    key = f"expert-trial-{study.name}"
    trials = {trial.number: trial for trial in front.trials}
    if st.session_state.get(key) not in trials:
        st.session_state[key] = front.knee.number if front.members else min(trials)
    return trials[int(st.selectbox("Trial", list(trials), key=key))]


def _draw_use(use: ExpertUse) -> None:
    layers = layers_frame(use)
    st.subheader("How often each expert is chosen")
    fractions = activations_frame(use)
    tokens = sum(map(sum, use.activations))
    said = (
        f"{len(layers)} layers, {fractions.shape[1]} experts each; the four busiest experts of a "
        f"layer take {layers['four busiest experts'].min():.0%} to "
        f"{layers['four busiest experts'].max():.0%} of its choices."
    )
    st.plotly_chart(activations_figure(fractions), key="activations", alt=said)
    st.caption(f"{said} {tokens} choices of prompts and decoding together, warm-ups left out.")
    st.subheader("Hits and predictions by layer")
    st.plotly_chart(rates_figure(layers), key="rates", alt="The table below holds the same.")
    st.dataframe(layers, hide_index=True, width="stretch")
    st.caption(
        "Hit rate: look-ups while decoding that found their expert in a slot or on its way. "
        "Prefetch precision: of the experts named to a layer ahead of its router, how many it "
        "chose; nothing is named to the first layer by predictors that look ahead."
    )


if __name__ == "__main__":
    main()
