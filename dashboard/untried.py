"""What a study has not tried: choices of its search space that no trial measured."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

import pandas as pd

from dashboard.panel import SETTINGS
from engine.contract.requests import Workload
from engine.errors import EngineError
from engine.facts.model import ModelFacts
from tuner.definition.study import StudyDefinition
from tuner.errors import TunerError
from tuner.search.space import BITS, SearchSpace, build_space
from tuner.store.snapshots import MEASURED_STATES, StudySnapshot, TrialSnapshot

log = logging.getLogger(__name__)


def space_of(study: StudySnapshot, device: str | None) -> SearchSpace | None:
    """The space that the study searches; None if this release cannot build it any more.

    device: the one that its trials ran on, if any did.
    """
    with contextlib.suppress(TunerError, EngineError, ValueError, TypeError, KeyError):
        return build_space(
            StudyDefinition.model_validate(dict(study.definition)),
            ModelFacts.from_json(dict(study.facts)),
            Workload.from_json(dict(study.workload)),
            device,
        )
    log.info("the space of study %s cannot be built", study.name)
    return None


def device_of(trials: Sequence[TrialSnapshot]) -> str | None:
    """The device that trials were resolved for."""
    return next((str(t.config["device"]["name"]) for t in trials if t.config), None)


def untried(
    space: SearchSpace, trials: Sequence[TrialSnapshot]
) -> Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]]:
    """Of each setting: the choices that were measured, and those that fit but were not."""
    left = space.not_tried([t.params for t in trials if t.state in MEASURED_STATES])
    return {
        one.name: (
            tuple(choice for choice in one.choices if choice not in left.get(one.name, ())),
            left.get(one.name, ()),
        )
        for one in space.parameters
    }


def untried_frame(
    found: Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]],
) -> pd.DataFrame:
    """One row a setting: its choices that were measured, and those that were not."""
    return pd.DataFrame(
        [
            {
                "setting": name,
                "meaning": SETTINGS.get(name, ""),
                "measured": ", ".join(map(str, tried)) or "-",
                "never measured": ", ".join(map(str, left)) or "-",
            }
            for name, (tried, left) in found.items()
        ]
    )


def precisions_sentence(
    found: Mapping[str, tuple[tuple[object, ...], tuple[object, ...]]],
) -> str:
    """Names each precision that fits and was never measured; empty where bits are not searched."""
    if BITS not in found:
        return ""
    left = found[BITS][1]
    if not left:
        return "Every precision that fits the memory was measured."
    said = ", ".join(f"{bits} bits" if isinstance(bits, int) else str(bits) for bits in left)
    return f"Precisions that fit the memory and were never measured: {said}."
