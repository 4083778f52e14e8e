"""Writes shell scripts for other engines: safely quoted words, and comments on what is missing.

User-supplied names (models, studies, machines) reach a script only through `quoted` or `comment`.
"""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from engine.contract.report import Metric
from engine.types import format_bytes
from tuner.definition.workload import describe_workload
from tuner.deployment.defaults import changed_paths
from tuner.deployment.document import Deployment, MeasuredMetric
from tuner.formatting import format_metric

WIDTH = 98
_LONGEST_VALUE = 48
_FIGURES = ("output_tps", "decode_tps", "prefill_tps", "tpot_ms", "ttft_ms", "expert_hit_rate")


def quoted(word: str) -> str:
    """Quotes one word for a POSIX shell."""
    return shlex.quote(word)


def assign(name: str, value: str) -> str:
    """Assigns a shell variable."""
    return f"{name}={quoted(value)}"


def comment(text: str, indent: str = "") -> str:
    """Formats text as comment lines, whatever characters it holds."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.fill(
        " ".join(plain.split()),
        WIDTH,
        initial_indent=f"# {indent}",
        subsequent_indent=f"# {indent}  ",
        break_on_hyphens=False,
    )


def command(words: Sequence[str], options: Sequence[Sequence[str]], indent: str = "") -> str:
    """Formats one command, one option per line. Words are written unchanged: quote user input."""
    lines = [" ".join(words), *(f"  {' '.join(option)}" for option in options)]
    return " \\\n".join(f"{indent}{line}" for line in lines)


def heading(deployment: Deployment, engine: str) -> list[str]:
    """The provenance of config and figures, for a script that starts another engine."""
    source = deployment.provenance
    return [
        comment(
            f"{engine}, as near as it comes to trial {source.trial} of study '{source.study}' of "
            f"expertune: {deployment.model.id}, revision {deployment.model.revision}."
        ),
        comment(
            f"Measured by expertune with its own engine, not with {engine}, in "
            f"{format_bytes(deployment.budget.vram_bytes)} of {deployment.config().device.name} on "
            f"{deployment.machine.get('cpu', 'a machine that is not named')}:"
        ),
        *figures(deployment),
    ]


def figures(deployment: Deployment) -> list[str]:
    """The measured speeds and quality with their intervals, as comments."""
    source = deployment.provenance.source
    found = [comment(describe_workload(deployment.workload.to_workload()), "  ")]
    found += [comment(f"figures: {source}", "  ")] if source else []
    for name in _FIGURES:
        metric = deployment.measured.get(name)
        if isinstance(metric, MeasuredMetric):
            shown = format_metric(Metric(**metric.model_dump()))
            found.append(comment(f"{name} {shown} {metric.unit}", "  "))
    if deployment.quality is not None:
        found.append(comment(f"quality {deployment.quality.value:.4g} (16 bits: 1)", "  "))
    return found


def left_out(
    deployment: Deployment, carried: Mapping[str, str], reasons: Mapping[str, str]
) -> list[str]:
    """A comment for each group of settings that differ from the defaults and that the other engine
    cannot express.

    carried: path -> option that expresses it; reasons: path prefix -> why it is left out. The
    longest matching prefix decides.
    """
    groups: dict[str, list[str]] = {}
    for path, value in changed_paths(deployment.config().flat()).items():
        if path not in carried:
            groups.setdefault(reason(path, reasons), []).append(f"{path} = {_shown(value)}")
    return [
        line
        for why, settings in groups.items()
        for line in (comment(f"{', '.join(settings)}:"), comment(why, "  "))
    ]


def reason(path: str, reasons: Mapping[str, str]) -> str:
    """Why this setting is left out; KeyError for a setting without a reason."""
    matches = [prefix for prefix in reasons if path.startswith(prefix)]
    if not matches:
        raise KeyError(path)
    return reasons[max(matches, key=len)]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
