"""The common chart style: Okabe and Ito's colour-blind-safe colours, never colour alone; axes that
make room for their labels.

No template is set, so that Streamlit's theme gives charts the page's light or dark background.
"""

from __future__ import annotations

from typing import Any

from dashboard.units import UNITS, word
from tuner.definition.objectives import SIGNS

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
SKY, PINK, AMBER = "#56B4E9", "#CC79A7", "#E69F00"
PALETTE = (BLUE, AMBER, GREEN, PINK, SKY, ORANGE, "#999933", GREY)
PATTERNS = ("", "/", "x", ".", "\\", "-", "|", "+")
SCALE = "Cividis"  # uniform for colour-blind readers and in print
POINT_SCALE = [[0.0, ORANGE], [0.5, "#B9A36B"], [1.0, BLUE]]  # seen on white and on black
MARGIN = {"l": 10, "r": 10, "t": 30, "b": 10}
TICKS = ",~f"  # 666,032 and 0.05: all digits, no exponents
LONG_MS = 10_000.0  # from here on an axis counts seconds


def label(name: str, unit: str | None = None) -> str:
    """The axis title of a metric. unit: other than the store's."""
    if name not in SIGNS:
        return name
    better = "more" if SIGNS[name] > 0 else "less"
    among = "of 16 bits" if name == "quality" else f"in {unit or UNITS[name]}"
    return f"{word(name)} {among} ({better} is better)"


def axis(name: str, largest: float) -> tuple[float, str]:
    """What an axis divides a metric by, and the title that says so: seconds where milliseconds
    would have five digits."""
    if UNITS.get(name) == "ms" and largest >= LONG_MS:
        return 1000.0, label(name, "s")
    return 1.0, label(name)


def layout(figure: Any, **settings: Any) -> Any:
    """Applies the common layout and these settings; returns the same figure.

    uirevision keeps the user's zoom when new data arrive; automargin gives every label its room.
    """
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(margin=MARGIN, legend=legend, uirevision="kept", **settings)
    figure.update_xaxes(automargin=True, tickformat=TICKS)
    figure.update_yaxes(automargin=True, tickformat=TICKS)
    return figure


def bars(rows: Any, name: str, scale: float = 1.0) -> dict[str, Any]:
    """Returns Plotly's error bars of a column, from its `_low` and `_high` columns."""
    return {
        "type": "data",
        "symmetric": False,
        "array": ((rows[f"{name}_high"] - rows[name]) / scale).tolist(),
        "arrayminus": ((rows[name] - rows[f"{name}_low"]) / scale).tolist(),
        "thickness": 1,
        "width": 2,
    }
