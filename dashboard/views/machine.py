"""The Machine page: the machine, model and package versions behind the figures."""

from __future__ import annotations

import streamlit as st

from dashboard.frames.machine import exports_frame, machine_frame, model_frame, versions_frame
from dashboard.reading import read_study
from tuner.store.database import Database
from tuner.store.overview import Overview
from tuner.store.snapshots import StudySnapshot


def main() -> None:
    """Draws the page from the store alone; the machine that serves this page is not probed."""
    st.title("Machine and versions")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    overview = Overview(snapshot)
    left, right = st.columns(2)
    with left:
        st.subheader("Machine")
        st.dataframe(machine_frame(study.machine), hide_index=True, width="stretch")
    with right:
        st.subheader("Model and workload")
        st.dataframe(model_frame(study), hide_index=True, width="stretch")
    st.subheader("Versions")
    versions = overview.versions(study)
    if versions:
        st.dataframe(versions_frame(versions), hide_index=True, width="stretch")
        st.caption("Of the packages that evaluated this model; a second set is a later update.")
    else:
        st.info("Versions are kept with each evaluation of quality, and none was made yet.")
    exports = overview.exports(study)
    if exports:
        st.subheader("Files that were written")
        st.dataframe(exports_frame(exports), hide_index=True, width="stretch")


if __name__ == "__main__":
    main()
