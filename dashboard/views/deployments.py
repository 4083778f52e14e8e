"""The Deployments page: each deployment's latest telemetry, and which to tune again."""

from __future__ import annotations

import streamlit as st

from dashboard.frames.studies import deployments_frame
from dashboard.reading import read
from tuner.store.database import Database
from tuner.store.repository import Store


def main() -> None:
    """Draws one row a deployment."""
    st.title("Deployments")
    read(_draw)


def _draw(snapshot: Database) -> None:
    windows = Store(snapshot).telemetry()
    if not windows:
        st.info("No deployment has reported yet: `tune deploy FILE` writes telemetry here.")
        return
    st.dataframe(deployments_frame(windows), hide_index=True, width="stretch")
    st.caption(
        "`re-tune` stands where texts route to other experts than those that the config was tuned "
        "for."
    )


if __name__ == "__main__":
    main()
