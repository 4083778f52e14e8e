"""The Compare page: whether two configs, of one study or of two, differ beyond noise."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.charts.compare import ratios_figure
from dashboard.frames.compare import DIFFERS, UNKNOWN, figures_frame, settings_frame
from dashboard.measured import measured_front
from dashboard.plain import plain
from dashboard.reading import CHOSEN, NO_STUDIES, read
from tuner.deployment.compare import Comparison, compare
from tuner.deployment.document import Deployment
from tuner.deployment.export import build_deployment
from tuner.store.database import Database
from tuner.store.repository import Store

MAIN = ("output_tps", "decode_tps", "prefill_tps", "tpot_ms", "ttft_ms", "expert_hit_rate",
        "stall_ms_per_token", "disk_bytes_per_token", "transfer_bytes_per_token")  # fmt: skip


def main() -> None:
    """Draws the two selectors, then the differences."""
    st.title("Compare")
    read(_draw)


def _draw(snapshot: Database) -> None:
    names = Store(snapshot).study_names()[::-1]
    if not names:
        st.info(NO_STUDIES)
        return
    left, right = st.columns(2)
    first = _choose(left, snapshot, "first", names, last=False)
    second = _choose(right, snapshot, "second", names, last=True)
    if first is not None and second is not None:
        _draw_comparison(compare(first, second))


def _choose(
    column: Any, snapshot: Database, side: str, names: tuple[str, ...], last: bool
) -> Deployment | None:
    """Lets the user choose a study's trial. last: start at the front's last member, not at the
    recommended trial."""
    chosen = st.session_state.get(CHOSEN)
    start = names.index(chosen) if chosen in names else 0
    name = str(column.selectbox(f"Study of the {side}", names, index=start, key=f"{side}-study"))
    study = Store(snapshot).study(name)
    front = measured_front(snapshot, study).front
    numbers = [trial.number for trial in front.trials]
    if not numbers:
        column.info("No trial ran to its end yet.")
        return None
    key = f"{side}-trial-{name}"
    if st.session_state.get(key) not in numbers:
        members = front.members or front.trials
        other = next((m for m in reversed(members) if m.id != front.knee.id), members[-1])
        st.session_state[key] = (other if last else front.knee).number
    number = column.selectbox(f"Trial of the {side}", numbers, key=key)
    return build_deployment(study, front, front.pick(str(number)))


def _draw_comparison(found: Comparison) -> None:
    for note in found.notes:
        st.warning(plain(note))
    st.subheader("Settings that differ")
    settings = settings_frame(found)
    if len(settings):
        st.dataframe(settings, hide_index=True, width="stretch")
    else:
        st.info("Every setting is the same.")
    st.subheader("Figures")
    figures = figures_frame(found)
    shown = figures[figures["metric"].isin(MAIN)]
    told = shown[shown["verdict"] == DIFFERS]["metric"].tolist()
    said = f"Beyond noise differ: {', '.join(told) if told else 'none'}."
    if (shown["verdict"] != UNKNOWN).any():
        st.plotly_chart(ratios_figure(shown), key="ratios", alt=said)
    st.caption(
        f"{said} A figure differs where the 95 % interval of the ratio leaves 1 out; the figures "
        "were measured apart, so the interval joins both. `tune bench` on both files measures "
        "them interleaved."
    )
    st.dataframe(figures, hide_index=True, width="stretch")


if __name__ == "__main__":
    main()
