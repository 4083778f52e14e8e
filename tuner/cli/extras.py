"""Checks for packages that only some commands need and an installation extra provides."""

from __future__ import annotations

from importlib.util import find_spec

from tuner.errors import UsageError

# Import names of the packages of each extra.
EXTRAS = {
    "serve": ("fastapi", "uvicorn", "prometheus_client"),
    "dashboard": ("streamlit", "plotly", "pandas"),
}


def require_extra(what: str, extra: str) -> None:
    """Raises UsageError with the installing command if a package of an extra is missing.

    what: names the feature that needs it, for the message. Nothing is imported.
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{what} needs {', '.join(missing)}, which this installation lacks: "
            f"pip install 'expertune[{extra}]'"
        )
