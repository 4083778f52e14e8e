"""What a policy may know when it is made: config, model facts, statistics, the future."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future as Pending
from dataclasses import dataclass, field
from typing import Any, TypeVar

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.policy.events import Floats
from engine.policy.future import Future
from engine.trace.trace import Trace

T = TypeVar("T")
Submit = Callable[[Callable[[], Any]], "Pending[Any]"]


def run_at_once(work: Callable[[], Any]) -> Pending[Any]:
    """Do the work now: what replay and tests use in place of a thread."""
    done: Pending[Any] = Pending()
    done.set_result(work())
    return done


@dataclass(frozen=True)
class PolicyContext:
    """config: resolved; history: a trace that statistics start from, None: from nothing;
    learned: arrays of trained predictors, by name (empty where none was trained); submit: how a
    predictor gets work done beside the engine."""

    config: EngineConfig
    facts: ModelFacts
    future: Future
    history: Trace | None = None
    learned: Mapping[str, Floats] = field(default_factory=dict)
    submit: Submit = run_at_once

    @property
    def layers(self) -> int:
        """MoE layers."""
        return self.facts.moe_layers

    @property
    def experts(self) -> int:
        """Experts of a layer."""
        return self.facts.experts

    @property
    def chosen(self) -> int:
        """Experts a token."""
        return self.facts.experts_per_token
