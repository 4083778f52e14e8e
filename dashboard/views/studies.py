"""The Studies page: all studies and the progress of the chosen one, redrawn while it runs."""

from __future__ import annotations

import streamlit as st

from dashboard.charts.studies import spent_figure
from dashboard.frames.studies import progress_line, running_frame, spent_frame, studies_frame
from dashboard.measured import read_points
from dashboard.plain import plain
from dashboard.reading import EVERY_S, read_study
from tuner.store.database import Database
from tuner.store.overview import Overview
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot


def main() -> None:
    """Draws the list of studies and the chosen one's progress."""
    st.title("Studies")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    st.dataframe(studies_frame(Store(snapshot).studies()), hide_index=True, width="stretch")
    st.caption("Choose one at the left; the other pages are about it.")
    st.subheader(plain(study.name))
    again = f" · looked at again every {EVERY_S:.0f} s" if study.state == "RUNNING" else ""
    st.caption(f"{plain(study.model)} · {study.state.lower()}{again}")
    if now := progress_line(study):
        st.markdown(f"**Now** {now}")
    overview = Overview(snapshot)
    with st.container(horizontal=True):
        st.metric("trials", study.trials, border=True)
        for state, count in sorted(study.trials_by_state.items()):
            st.metric(state.lower(), count, border=True)
    objectives = tuple(study.definition["objectives"])
    points = read_points(snapshot, study, objectives)
    with st.container(horizontal=True):
        for name in objectives:
            if (value := points.best(name)) is not None:
                st.metric(f"best {name}", f"{value:.4g}", border=True)
    _draw_running(overview, study)
    spent = spent_frame(study)
    if len(spent):
        st.markdown("**Seconds by stage**")
        said = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in study.spent.items())
        st.plotly_chart(spent_figure(spent), key="spent", alt=f"Seconds by stage: {said}")


def _draw_running(overview: Overview, study: StudySnapshot) -> None:
    running = running_frame(overview.running(study))
    if len(running):
        st.markdown("**Running now**")
        st.dataframe(running, hide_index=True, width="stretch")


if __name__ == "__main__":
    main()
