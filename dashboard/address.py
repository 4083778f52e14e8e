"""What a page shows, kept in its address, so that a link shows the same again.

Each choice is a widget's state and a query parameter: the address sets the state once, when a page
opens, and follows it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

STUDY = "study"


def restore(key: str, name: str, read: Callable[[str], Any]) -> None:
    """Gives the widget `key` what the address says under `name`, unless it has a state.

    read: from text to the widget's value; None or ValueError where the text names none.
    """
    if key in st.session_state or name not in st.query_params:
        return
    try:
        value = read(st.query_params[name])
    except ValueError:
        return
    if value is not None:
        st.session_state[key] = value


def restore_all(key: str, name: str, allowed: Sequence[str]) -> None:
    """Gives a multiselect the values of the address, as far as they exist."""
    if key not in st.session_state and name in st.query_params:
        st.session_state[key] = [one for one in st.query_params.get_all(name) if one in allowed]


def one_of(allowed: Sequence[str]) -> Callable[[str], str | None]:
    """Reads a text that must be one of these."""
    return lambda text: text if text in allowed else None


def keep(name: str, value: str | Sequence[str] | None) -> None:
    """Writes a choice into the address; None or none at all: the page's own, which needs no word.

    Writes nothing that stands there already, since each write is a message to the browser.
    """
    wanted = [value] if isinstance(value, str) else list(value or ())
    if st.query_params.get_all(name) == wanted:
        return
    if wanted:
        st.query_params[name] = wanted
    else:
        del st.query_params[name]


def forget() -> None:
    """Drops everything but the study: another one was chosen."""
    for name in list(st.query_params):
        if name != STUDY:
            del st.query_params[name]
