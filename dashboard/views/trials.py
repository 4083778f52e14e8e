"""The Trials page: trials, failures, importances of settings, accuracy of predictions."""

from __future__ import annotations

import streamlit as st

from dashboard.address import keep, one_of, restore, restore_all
from dashboard.charts.predictions import predicted_figure
from dashboard.charts.trials import (
    failures_figure,
    importances_figure,
    parallel_figure,
)
from dashboard.frames.predictions import error_band, predicted_frame
from dashboard.frames.trials import (
    failures_frame,
    importances_frame,
    parallel_frame,
    trials_frame,
)
from dashboard.reading import read_study
from dashboard.units import TITLES, word
from dashboard.untried import device_of, precisions_sentence, space_of, untried, untried_frame
from tuner.definition.objectives import SPEEDS
from tuner.pareto.explain import twin_error
from tuner.pareto.importance import importances
from tuner.store.database import Database
from tuner.store.overview import Overview, TrialFilter
from tuner.store.repository import Store
from tuner.store.snapshots import MEASURED_STATES, StudySnapshot, TrialSnapshot

ROWS = 100  # rows on one page of the table
NEWEST = 300  # trials behind the charts
ANY = "any"


def main() -> None:
    """Draws the table, then the charts."""
    st.title("Trials")
    read_study(_draw)


def _draw(snapshot: Database, study: StudySnapshot) -> None:
    overview = Overview(snapshot)
    if not study.trials:
        st.info("No trial has begun yet.")
        return
    failures = overview.failures(study)
    _draw_table(snapshot, study, _choose_filter(overview, study, failures))
    if failures:
        st.subheader("Failures by class")
        said = ", ".join(f"{count} {name}" for name, count in failures.items())
        figure = failures_figure(failures_frame(failures))
        st.plotly_chart(figure, key="failures", alt=f"Failures: {said}")
    complete = TrialFilter(states=("COMPLETE",))
    newest = overview.numbers(study, complete, 0, NEWEST)
    trials = Store(snapshot).trials(study, newest)
    if not trials:
        return
    _draw_predictions(trials)
    _draw_untried(snapshot, study)
    total = study.trials_by_state.get("COMPLETE", 0)
    if total > len(trials):
        st.caption(f"The charts below are of the newest {len(trials)} of {total} complete trials.")
    objectives = study.definition["objectives"]
    _draw_parallel(trials, objectives)
    _draw_importances(trials, objectives)


def _choose_filter(
    overview: Overview, study: StudySnapshot, failures: dict[str, int]
) -> TrialFilter:
    state, failure, setting, value = st.columns(4)
    known = sorted(study.trials_by_state)
    restore_all(f"state-{study.name}", "state", known)
    states = state.multiselect("State", known, key=f"state-{study.name}")
    restore_all(f"failure-{study.name}", "failure", list(failures))
    classes = failure.multiselect("Failure", list(failures), key=f"failure-{study.name}")
    settings = [ANY, *overview.settings(study)]
    restore(f"setting-{study.name}", "setting", one_of(settings))
    name = str(setting.selectbox("Setting", settings, key=f"setting-{study.name}"))
    keep("state", states)
    keep("failure", classes)
    keep("setting", None if name == ANY else name)
    if name == ANY:
        value.selectbox("Value", [ANY], disabled=True, key="no-value")
        keep("value", None)
        return TrialFilter(tuple(states), tuple(classes))
    values = overview.values(study, name)
    restore(f"value-{study.name}-{name}", "value", one_of(values))
    chosen = value.selectbox("Value", values, key=f"value-{study.name}-{name}")
    keep("value", chosen)
    return TrialFilter(tuple(states), tuple(classes), name, chosen)


def _draw_table(snapshot: Database, study: StudySnapshot, wanted: TrialFilter) -> None:
    overview = Overview(snapshot)
    count = overview.count(study, wanted)
    pages = max(1, -(-count // ROWS))
    page = 1
    if pages > 1:
        key = f"page-{study.name}"
        if st.session_state.get(key, 1) > pages:
            st.session_state[key] = pages
        page = int(st.number_input("Page", 1, pages, key=key))
    skip = (page - 1) * ROWS
    numbers = overview.numbers(study, wanted, skip, ROWS)
    trials = Store(snapshot).trials(study, numbers) if numbers else ()
    frame = trials_frame(trials, study.definition["objectives"])
    st.dataframe(frame, hide_index=True, width="stretch", column_config=TITLES)
    last = skip + len(trials)
    shown = f"{skip + 1} to {last}" if trials else "0"
    st.caption(f"Shown are {shown} of {count} trials, the newest first (± half a 95 % interval).")


def _draw_parallel(trials: tuple[TrialSnapshot, ...], objectives: list[str]) -> None:
    table = parallel_frame(trials, objectives)
    if len(table) < 2:
        return
    st.subheader("Settings and what they gave")
    colour = str(st.selectbox("Coloured by", objectives, key="colour"))
    said = f"One line a trial over {', '.join(map(str, table.columns))}; the table holds the same."
    st.plotly_chart(parallel_figure(table, colour), key="parallel", alt=said)
    st.caption("Drag along an axis to keep only some lines; the filter above narrows the table.")


def _draw_importances(trials: tuple[TrialSnapshot, ...], objectives: list[str]) -> None:
    weights = importances(trials, objectives)
    if not weights:
        return
    st.subheader("How much each setting matters")
    fractions = importances_frame(weights)
    said = "; ".join(
        f"{name}: {', '.join(f'{setting} {fraction:.0%}' for setting, fraction in by_name.items())}"
        for name, by_name in weights.items()
    )
    st.plotly_chart(importances_figure(fractions), key="importances", alt=said)
    st.caption(
        f"PED-ANOVA over {len(trials)} trials: which settings decide whether a trial is among the "
        "better ones. With few trials it is a hint."
    )


def _draw_predictions(trials: tuple[TrialSnapshot, ...]) -> None:
    names = [name for name in SPEEDS if len(predicted_frame(trials, name))]
    if not names:
        return
    st.subheader("Predicted against measured")
    restore("predicted-of", "predicted", one_of(names))
    name = str(st.selectbox("Figure", names, format_func=word, key="predicted-of"))
    keep("predicted", None if name == names[0] else name)
    pairs = predicted_frame(trials, name)
    band, error = error_band(pairs), twin_error(trials, name)
    said = (
        "Before a config runs, its speed is predicted by replaying recorded expert choices. A "
        "point on the dashed line came out as predicted."
    )
    if band is not None:
        said += f" The grey band: {band.sentence}."
    if error is not None:
        said += (
            f" Predictions were off by {error.median:.0%} (median of {error.n} trials, at most "
            f"{error.largest:.0%}) beside a common factor of {error.factor:.2f}, which the search "
            "corrects at once."
        )
    st.plotly_chart(predicted_figure(pairs, name, band), key="predicted", alt=said)
    st.caption(said)


def _draw_untried(snapshot: Database, study: StudySnapshot) -> None:
    measured = TrialFilter(states=MEASURED_STATES)
    numbers = Overview(snapshot).numbers(study, measured, 0, NEWEST)
    trials = Store(snapshot).trials(study, numbers)
    space = space_of(study, device_of(trials))
    if space is None:
        return
    found = untried(space, trials)
    st.subheader("What was not tried")
    st.caption(
        f"The study may choose among {space.size} configs and measured {len(trials)}. The others "
        f"were judged by prediction. {precisions_sentence(found)}"
    )
    st.dataframe(untried_frame(found), hide_index=True, width="stretch")


if __name__ == "__main__":
    main()
