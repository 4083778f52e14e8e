"""Packages that only some commands need: an extra of the installation brings them."""

from __future__ import annotations

from importlib.util import find_spec

from tuner.errors import UsageError

# What the packages of an extra are imported as.
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "dashboard": ("streamlit", "plotly", "pandas"),
}


def require_extra(what: str, extra: str) -> None:
    """UsageError with the command that installs an extra, where one of its packages is missing.

    what: names what needs it, for the message. Nothing is imported.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {', '.join(missing)}, which this installation lacks: "
            f"pip install 'expertune[{extra}]'"
        )
