"""The inputs from which a policy is built: config, model facts, statistics, the future."""

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
    """Run the work immediately: replay and tests use this instead of a thread."""
    done: Pending[Any] = Pending()
    done.set_result(work())
    return done


@dataclass(frozen=True)
class PolicyContext:
    """Inputs of a policy's factory.

    config: resolved; history: a trace for initial statistics, None: no statistics; learned: arrays
    of trained predictors, by name (empty if none was trained); submit: runs a predictor's work in
    parallel with the engine.
    """

    config: EngineConfig
    facts: ModelFacts
    future: Future
    history: Trace | None = None
    learned: Mapping[str, Floats] = field(default_factory=dict)
    submit: Submit = run_at_once

    @property
    def layers(self) -> int:
        """Number of MoE layers."""
        return self.facts.moe_layers

    @property
    def experts(self) -> int:
        """Number of experts per layer."""
        return self.facts.experts

    @property
    def chosen(self) -> int:
        """Number of experts per token."""
        return self.facts.experts_per_token
