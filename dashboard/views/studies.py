"""The Studies page: all studies and the progress of the chosen one, redrawn while it runs."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard.charts.studies import history_figure, spent_figure
from dashboard.frames.history import history_frame
from dashboard.frames.studies import (
    done_fraction,
    progress_line,
    running_frame,
    spent_frame,
    studies_frame,
)
from dashboard.measured import read_points
from dashboard.plain import plain
from dashboard.reading import EVERY_S, read_study
from dashboard.units import duration, objective, word
from tuner.store.database import Database
from tuner.store.overview import Overview, TrialFilter
from tuner.store.repository import Store
from tuner.store.service import revision
from tuner.store.snapshots import StudySnapshot

NEWEST = 300  # trials behind the best so far
STATES = {
    "COMPLETE": "measured to the end",
    "PRUNED": "stopped early, as they could not win",
    "INFEASIBLE": "did not fit the memory",
    "FAILED": "failed",
    "INTERRUPTED": "interrupted",
    "RUNNING": "running",
}


def main() -> None:
    """Draws the chosen study's progress, then the list of studies."""
    st.title("Studies")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    st.subheader(plain(study.name))
    again = f" · looked at again every {EVERY_S:.0f} s" if study.state == "RUNNING" else ""
    st.caption(f"{plain(study.model)} · {study.state.lower()}{again}")
    _draw_now(study)
    counts = [
        f"{count} {STATES.get(state, state.lower())}"
        for state, count in sorted(study.trials_by_state.items())
    ]
    st.markdown(f"**{study.trials} trials**, each one config: {', '.join(counts) or 'none yet'}.")
    objectives = tuple(study.definition["objectives"])
    points = read_points(snapshot, study, objectives)
    with st.container(horizontal=True):
        for name in objectives:
            if (value := points.best(name)) is not None:
                st.metric(f"best {word(name)}", objective(value, name), border=True)
    history, spent = st.columns(2, gap="medium")
    with history:
        _draw_history(snapshot, study, objectives[0])
    with spent:
        _draw_spent(study)
    _draw_running(Overview(snapshot), study)
    st.markdown("**All studies**")
    st.dataframe(studies_frame(Store(snapshot).studies()), hide_index=True, width="stretch")
    st.caption("Choose one in the sidebar; the other pages are about it.")


def _draw_now(study: StudySnapshot) -> None:
    now = progress_line(study)
    if not now:
        return
    st.markdown(f"**Now** {now}")
    fraction = done_fraction(study)
    if fraction is not None:
        st.progress(min(1.0, fraction), f"{fraction:.0%} of the expected time has passed")


def _draw_history(snapshot: Database, study: StudySnapshot, name: str) -> None:
    complete = Overview(snapshot).numbers(study, TrialFilter(states=("COMPLETE",)), 0, NEWEST)
    if not complete:
        return
    history = _kept_history(snapshot.url, study.id, revision(snapshot), snapshot, study, complete)
    if not len(history):
        return
    st.markdown("**The best so far**")
    last = history.iloc[-1]
    said = (
        f"{word(name)} of the recommended config over time, now trial {last['number']} with "
        f"{objective(last[name], name)}"
    )
    st.plotly_chart(history_figure(history, name), key="history", alt=said)
    st.caption(
        "The recommended config's throughput; a star is a change. It may fall, where quality or "
        "time per token gained more."
        if name == "output_tps"
        else f"The recommended config's {word(name)}; a star is a change."
    )


@st.cache_resource(max_entries=8, show_spinner=False)
def _kept_history(
    url: str,
    study_id: int,
    written: tuple[Any, ...],
    _snapshot: Database,
    _study: StudySnapshot,
    _numbers: tuple[int, ...],
) -> pd.DataFrame:
    return history_frame(_study, Store(_snapshot).trials(_study, _numbers))


def _draw_spent(study: StudySnapshot) -> None:
    spent = spent_frame(study)
    if not len(spent):
        return
    total = float(spent["seconds"].sum())
    st.markdown("**Where the time went**")
    rows = spent.itertuples(index=False)
    said = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in rows)
    st.plotly_chart(spent_figure(spent), key="spent", alt=f"Time by stage: {said}")
    running = " A stage that runs now is added when it ends." if study.progress else ""
    expected = f", {duration(study.estimate_s)} were expected" if study.estimate_s else ""
    st.caption(f"Together {duration(total)}{expected}.{running}")


def _draw_running(overview: Overview, study: StudySnapshot) -> None:
    running = running_frame(overview.running(study))
    if len(running):
        st.markdown("**Running now**")
        st.dataframe(running, hide_index=True, width="stretch")


if __name__ == "__main__":
    main()
