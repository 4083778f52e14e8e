"""Named policies: YAML overlays in studies/policies/, with no code of their own."""

from __future__ import annotations

import functools
from typing import Any

from pydantic import Field

from engine.config.settings import EngineConfig
from engine.errors import ConfigError, nearest_hint
from engine.types import shown
from tuner.definition.strict_yaml import Strict, load_yaml, read_strict
from tuner.errors import DefinitionError, UsageError
from tuner.folders import studies_folder


class Published(Strict):
    """A ratio that a paper reports.

    over: the policy it is measured against, or settings to overlay on this policy instead (the same
    policy without one of its mechanisms); setting: the authors' hardware and models.
    """

    metric: str
    over: str | dict[str, Any]
    ratio: float
    setting: str


class PolicyFile(Strict):
    """A policy: settings (paths) to overlay on a config.

    paper: the method's source; trained: the predictor that must have been trained for the model
    first; published: the figures that its authors report.
    """

    description: str
    engine: dict[str, Any]
    paper: str | None = None
    trained: str | None = None
    published: list[Published] = Field(default=[])


def policy_names() -> tuple[str, ...]:
    """The names of all installed policies."""
    return tuple(sorted(path.stem for path in (studies_folder() / "policies").glob("[!.]*.yaml")))


OWN = "own"  # as the choice of a study: its own settings, without a preset


@functools.cache
def policy_settings(name: str) -> dict[str, Any]:
    """What a choice of a study's `policy` sets: nothing for OWN. Raises UsageError as load_policy
    does."""
    return {} if name == OWN else dict(load_policy(name).engine)


def load_policy(name: str) -> PolicyFile:
    """Loads a policy by name; raises UsageError with the nearest name if there is none."""
    names = policy_names()
    if name not in names:
        hint = nearest_hint(name, names)
        raise UsageError(
            f"there is no policy '{shown(name)}'{hint} (there are: {', '.join(names)})"
        )
    path = studies_folder() / "policies" / f"{name}.yaml"
    policy = read_strict(PolicyFile, load_yaml(path), str(path))
    try:
        config = EngineConfig().overlay(policy.engine)
        for entry in policy.published:
            config.overlay(entry.over if isinstance(entry.over, dict) else {})
    except ConfigError as error:
        raise DefinitionError(f"{path}: {error}") from None
    return policy
