"""Reads the store for a page: one read snapshot, errors as sentences, repeated during a study."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

import streamlit as st

from dashboard.plain import plain
from engine.errors import EngineError
from tuner.errors import TunerError
from tuner.folders import default_storage
from tuner.store.database import Database, open_read_only
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot

EVERY_S = 3.0  # between two reads of a running study
CHOSEN, RUNNING = "chosen study", "running"
NO_STUDIES = "There are no studies yet: run `tune --model demo --vram 64MB`."


def read(draw: Callable[[Database], None]) -> None:
    """Calls draw with a read snapshot of the store; shows an error as one sentence."""
    try:
        database = open_read_only(_storage())
        with contextlib.closing(database), database.read_snapshot() as snapshot:
            draw(snapshot)
    except (TunerError, EngineError) as error:
        st.error(plain(str(error)))


def read_study(draw: Callable[[Database, StudySnapshot], None]) -> None:
    """Draws the chosen study, again every EVERY_S seconds while it runs; widgets keep their state.

    Once it no longer runs, the whole page is drawn again without the timer.
    """
    running = bool(st.session_state.get(RUNNING))

    def draw_snapshot(snapshot: Database) -> None:
        name = st.session_state.get(CHOSEN)
        if name is None:
            st.info(NO_STUDIES)
            return
        study = Store(snapshot).study(name)
        if running and study.state != "RUNNING":
            st.session_state[RUNNING] = False
            st.rerun()
        draw(snapshot, study)

    st.fragment(lambda: read(draw_snapshot), run_every=EVERY_S if running else None)()


def _storage() -> str:
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", default=None)
    arguments, _ = parser.parse_known_args(sys.argv[1:])
    return arguments.storage or default_storage()
