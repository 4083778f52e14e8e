"""Named policies: YAML overlays in studies/policies/, and nothing else."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from engine.config.settings import EngineConfig
from engine.errors import ConfigError, nearest_hint
from tuner.definition.strict_yaml import Strict, load_yaml, read_strict
from tuner.errors import DefinitionError, UsageError
from tuner.folders import studies_folder


class Published(Strict):
    """A ratio that a paper reports.

    over: the policy it is measured against, or settings laid over this policy instead (the same
    without one of its mechanisms); setting: the authors' hardware and models.
    """

    metric: str
    over: str | dict[str, Any]
    ratio: float
    setting: str


class PolicyFile(Strict):
    """A policy: settings (paths) to lay over a config.

    paper: where the method comes from; trained: the predictor whose arrays must have been learned
    for the model first; published: what its authors report.
    """

    description: str
    engine: dict[str, Any]
    paper: str | None = None
    trained: str | None = None
    published: list[Published] = Field(default=[])


def policy_names() -> tuple[str, ...]:
    """The policies of this installation."""
    return tuple(sorted(path.stem for path in (studies_folder() / "policies").glob("*.yaml")))


def load_policy(name: str) -> PolicyFile:
    """A policy by name; UsageError naming the nearest where there is none."""
    path = studies_folder() / "policies" / f"{name}.yaml"
    if not path.is_file():
        names = policy_names()
        hint = nearest_hint(name, names)
        raise UsageError(f"there is no policy '{name}'{hint} (there are: {', '.join(names)})")
    policy = read_strict(PolicyFile, load_yaml(path), str(path))
    try:
        config = EngineConfig().overlay(policy.engine)
        for entry in policy.published:
            config.overlay(entry.over if isinstance(entry.over, dict) else {})
    except ConfigError as error:
        raise DefinitionError(f"{path}: {error}") from None
    return policy
