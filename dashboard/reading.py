"""Reading the store for a page: one snapshot of it, errors as sentences, again while a study
runs."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

import streamlit as st

from engine.errors import EngineError
from tuner.errors import TunerError
from tuner.folders import default_storage
from tuner.store.database import Database, open_read_only
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot

EVERY_S = 3.0  # between two looks at a running study
CHOSEN, RUNNING = "chosen study", "running"
NO_STUDIES = "There are no studies yet: run `tune --model demo --vram 64MB`."


def read(draw: Callable[[Database], None]) -> None:
    """Draw from the store as it is at this snapshot; what cannot be read is said in one
    sentence."""
    try:
        database = open_read_only(_storage())
        with contextlib.closing(database), database.read_snapshot() as snapshot:
            draw(snapshot)
    except (TunerError, EngineError) as error:
        st.error(str(error))


def read_study(draw: Callable[[Database, StudySnapshot], None]) -> None:
    """Draw the chosen study, again every EVERY_S seconds while it runs; what the user chose stays.

    Once it no longer runs the whole page is drawn again, without the clock.
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
