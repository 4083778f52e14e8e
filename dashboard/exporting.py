"""The export button: downloads a trial in any format that `tune export` writes."""

from __future__ import annotations

import streamlit as st

from dashboard.plain import plain
from tuner.deployment.export import render_format
from tuner.deployment.formats.registry import FORMATS
from tuner.errors import TunerError
from tuner.pareto.front import Front
from tuner.store.snapshots import StudySnapshot, TrialSnapshot


def draw_exports(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> None:
    """Draws the format list and the button, or the reason why a format cannot hold this config."""
    name = str(
        st.selectbox(
            "Format",
            list(FORMATS),
            format_func=lambda known: f"{known}: {FORMATS[known].title}",
            key="format",
        )
    )
    try:
        text = render_format(name, study, front, trial)
    except TunerError as error:
        st.warning(plain(str(error)))
        return
    st.download_button(
        f"Export as {name}",
        text,
        file_name=f"expertune-{study.name}-{trial.number}{FORMATS[name].suffix}",
        mime=FORMATS[name].mime,
        key="export",
        on_click="ignore",
    )
