"""The Streamlit entry point: `streamlit run dashboard/app.py -- --storage URL`. Reads, never
writes.

Draws what all pages share: the navigation and the study selector. Page contents are in views/;
Streamlit would run a folder named pages/ by itself, without this frame.
"""

from __future__ import annotations

import streamlit as st

from dashboard.address import STUDY, forget
from dashboard.reading import CHOSEN, RUNNING, read
from tuner.store.database import Database
from tuner.store.repository import Store

PAGES = (
    ("studies", "Studies", "How far are they?"),
    ("front", "Front", "Which configs are worth choosing from?"),
    ("trials", "Trials", "What was run, and what mattered?"),
    ("budgets", "Budgets", "What would more memory give?"),
    ("experts", "Experts", "Which experts are used, kept and foreseen?"),
    ("compare", "Compare", "Do two configs differ?"),
    ("machine", "Machine", "Where do the figures come from?"),
    ("deployments", "Deployments", "What should be tuned again?"),
)


# Streamlit's own margins push a chart and its axis below the edge of a small screen.
STYLE = """<style>
.stMainBlockContainer {padding: 3.75rem 2rem 3rem}
.stMainBlockContainer h1 {font-size: 1.6rem; padding: 0}
.stMainBlockContainer h3 {font-size: 1.3rem; padding: 0}
@media (max-width: 640px) {.stMainBlockContainer {padding: 3.75rem 1rem 3rem}}
</style>"""


def main() -> None:
    """Draws the page that the address names."""
    st.set_page_config(page_title="expertune", layout="wide")
    st.html(STYLE)
    page = st.navigation(
        [
            st.Page(f"views/{name}.py", title=title, help=question, default=name == PAGES[0][0])
            for name, title, question in PAGES
        ]
    )
    read(_choose_study)
    page.run()


def _choose_study(snapshot: Database) -> None:
    """Draws the study selector in the sidebar; starts at the newest study.

    The choice is kept across pages and in the address.
    """
    store = Store(snapshot)
    names = store.study_names()[::-1]
    if not names:
        st.session_state[RUNNING] = False
        return
    named = st.query_params.get(STUDY)
    asked = st.session_state.get(CHOSEN) or named
    if st.session_state.get("study") not in names:
        st.session_state["study"] = asked if asked in names else names[0]
    chosen = str(st.sidebar.selectbox("Study", names, key="study"))
    if named != chosen:
        if named is not None:
            forget()
        st.query_params[STUDY] = chosen
    st.session_state[CHOSEN] = chosen  # a widget's own state may end with its page
    st.session_state[RUNNING] = store.study(chosen).state == "RUNNING"


if __name__ == "__main__":
    main()
