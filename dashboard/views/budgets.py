"""The Budgets page: what each device budget gives, and the gain of the next gigabyte."""

from __future__ import annotations

import numpy as np
import streamlit as st

from dashboard.charts.budgets import curve_figure
from dashboard.frames.budgets import curve_frame
from dashboard.measured import read_points
from dashboard.reading import read_study
from dashboard.thinning import thinned
from engine.types import format_bytes
from tuner.pareto.budget_curve import device_budgets, fronts_by_budget
from tuner.pareto.limits import inside, own_limits
from tuner.store.database import Database
from tuner.store.repository import Store
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

MOST = 100  # trials read for each budget


def main() -> None:
    """Draws the curve and its table."""
    st.title("Budgets")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    budgets = device_budgets(study)
    if len(budgets) < 2:
        st.info(
            f"This study asked about one budget, {format_bytes(budgets[0])}. A list makes a curve: "
            "`tune --model M --vram 4GB,6GB,8GB`."
        )
        return
    curve = curve_frame(fronts_by_budget(study, _trials(snapshot, study, budgets)))
    known = curve.dropna(subset=["fastest tokens/s"])
    if not len(known):
        st.info("No trial ran to its end within the limits yet.")
        return
    said = ", ".join(
        f"{row[0]:g} GB {row[1]:.4g} tokens a second"
        for row in known[["budget (GB)", "fastest tokens/s"]].itertuples(index=False)
    )
    st.plotly_chart(curve_figure(known), key="curve", alt=said)
    st.dataframe(curve, hide_index=True, width="stretch")
    st.caption(
        "Each budget's point is its fastest config of recommended quality, with the 95 % interval. "
        "A config runs under the smallest budget that holds it and counts for all larger ones."
    )


def _trials(
    snapshot: Database, study: StudySnapshot, budgets: tuple[int, ...]
) -> tuple[TrialSnapshot, ...]:
    """Reads the trials that can be on some budget's front, thinned."""
    objectives, own = study.definition["objectives"], own_limits(study)
    points = read_points(snapshot, study, tuple(objectives), with_budgets=True)
    assert points.budgets is not None
    kept = inside(points, own, own)
    numbers: set[int] = set()
    for budget in budgets:
        fitting = np.asarray(points.budgets <= budget)
        numbers.update(thinned(points, objectives, kept & fitting, MOST))
    return Store(snapshot).trials(study, sorted(numbers))


if __name__ == "__main__":
    main()
