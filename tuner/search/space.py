"""SearchSpace: the settings that a study varies. A parameter's name is the config path it sets, or
`policy`, whose choices are presets.

In: a definition, model facts. Out: parameters with their choices, limited to those that can fit. A
point resolves to a config or is infeasible; neither needs a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config.settings import EngineConfig, base_config, link_chunks
from engine.contract.requests import Workload
from engine.errors import ConfigError, InfeasibleError
from engine.facts.model import ModelFacts
from engine.memory.kv import one_memory
from engine.memory.plan import (
    Resolved,
    on_opened_device,
    resolve,
    with_embeddings_off_device,
)
from engine.native.library import multiplies_bytes
from engine.precision.allocate import with_table
from engine.precision.table import PLANNED
from tuner.definition.policies import policy_settings
from tuner.definition.study import POLICY, StudyDefinition
from tuner.errors import DefinitionError, InfeasibleStudyError
from tuner.folders import cache_folder

Choice = str | int | float | bool
Point = Mapping[str, Choice]

CACHE_CHOICES: tuple[Choice, ...] = ("12.5%", "25%", "37.5%", "50%", "75%", "100%", "auto")
DEPTH_CHOICES: tuple[Choice, ...] = (0, 1, 2)
BITS_CHOICES: tuple[Choice, ...] = (16, 8, 4, 2)
PUBLISHED = "prequantized"  # of precision.bits: the codes of a pre-quantized checkpoint
COUNT_CHOICES: tuple[Choice, ...] = (1, 2, 4)
PLACEMENT_CHOICES: tuple[Choice, ...] = ("earliest", "device")  # beside a device's own memory
NON_EXPERT_CHOICES: tuple[Choice, ...] = (16, 8, 4)
ACTIVATION_CHOICES: tuple[Choice, ...] = (16, 8)  # where bytes are multiplied
BUDGET, CORRECTION = "budget.vram_bytes", "device.correction_bytes"
CACHE, DEPTH, BITS, COUNT = "cache.expert_bytes", "prefetch.depth", "precision.bits", "batch.count"
PREDICTOR, NON_EXPERT = "prefetch.predictor", "precision.non_expert_bits"
PLACEMENT, CHUNK = "placement.name", "prefill.chunk_tokens"
ACTIVATIONS = "precision.activation_bits"
_MEMORY_SECTIONS = (
    POLICY,
    "cache.",
    "precision.",
    "batch.",
    "kv.",
    "prefill.",
    "compute.",
    "io.",
    "budget.",
)


@dataclass(frozen=True)
class Parameter:
    """One setting and its possible values."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class SearchSpace:
    """The product of the parameters over a base config, whose correction of the memory equation
    follows what was measured (`correct`)."""

    parameters: tuple[Parameter, ...]
    base: EngineConfig
    facts: ModelFacts
    _correction: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def size(self) -> int:
        """The number of points."""
        total = 1
        for parameter in self.parameters:
            total *= len(parameter.choices)
        return total

    def correct(self, correction_bytes: int) -> None:
        """From now on, points resolve with this correction of the memory equation."""
        self._correction[CORRECTION] = correction_bytes

    @property
    def correction_bytes(self) -> int | None:
        """The correction; None before there is one."""
        return self._correction.get(CORRECTION)

    def config(self, point: Point) -> EngineConfig:
        """Overlays the point on the base; depth and predictor are one decision, and what a policy
        sets takes the place of the point's own."""
        values: dict[str, Any] = {**self._correction, **point}
        policy = values.pop(POLICY, None)
        names = {parameter.name for parameter in self.parameters}
        if DEPTH in values and PREDICTOR not in names:
            values[PREDICTOR] = "next_gate" if values[DEPTH] else "none"
        if policy is not None:
            values |= policy_settings(str(policy))
        return self._at_least_budget(self.base.overlay(values), BUDGET in names)

    def _at_least_budget(self, config: EngineConfig, curved: bool) -> EngineConfig:
        """In a budget curve, selects the smallest budget that holds the config: what fits 4 GB is
        measured once and counts for 8 GB too."""
        if not curved:
            return config
        try:
            needed = resolve(with_table(config, self.facts, cache_folder()), self.facts).memory
        except (InfeasibleError, ConfigError):
            return config
        budgets = next(p.choices for p in self.parameters if p.name == BUDGET)
        enough = [int(b) for b in budgets if int(b) >= needed.total_bytes]
        return config.overlay({BUDGET: min(enough, default=config.budget.vram_bytes)})

    def resolve(self, point: Point) -> Resolved:
        """Returns the complete config and its memory; raises InfeasibleError if it does not fit."""
        try:
            config = with_table(self.config(point), self.facts, cache_folder())
            return resolve(config, self.facts)
        except ConfigError as error:
            raise InfeasibleError(str(error)) from None

    def not_tried(self, points: Sequence[Point]) -> dict[str, tuple[Choice, ...]]:
        """The choices that occur in none of these points, by parameter."""
        found = {
            parameter.name: tuple(
                choice
                for choice in parameter.choices
                if not any(point.get(parameter.name) == choice for point in points)
            )
            for parameter in self.parameters
        }
        return {name: choices for name, choices in found.items() if choices}

    def memory_points(self) -> Iterator[dict[str, Choice]]:
        """Every combination of the parameters that affect memory, the others at their first
        choice."""
        names = [parameter.name for parameter in self.parameters]
        choices = [
            p.choices if p.name.startswith(_MEMORY_SECTIONS) else p.choices[:1]
            for p in self.parameters
        ]
        for values in itertools.product(*choices):
            yield dict(zip(names, values, strict=True))

    def fits(self, point: Point) -> bool:
        """Whether the point fits the budget."""
        try:
            self.resolve(point)
        except InfeasibleError:
            return False
        return True

    def default(self) -> dict[str, Choice]:
        """The point that a user would choose without tuning: the largest cache, at the published
        precision of a pre-quantized checkpoint, else at the most bits that fit."""
        flat = self.base.flat()
        wanted = {
            p.name: flat[p.name] if flat.get(p.name) in p.choices else p.choices[0]
            for p in self.parameters
        }
        if PUBLISHED in next((p.choices for p in self.parameters if p.name == BITS), ()):
            wanted[BITS] = PUBLISHED
        sized = CACHE in wanted and wanted[CACHE] != flat[CACHE]
        if sized:
            wanted = self._with_most_capacity(wanted)
        if self.fits(wanted):
            return wanted
        free = {p.name for p in self.parameters if not p.name.startswith(_MEMORY_SECTIONS)}
        best = max(
            (point for point in self.memory_points() if self.fits(point)),
            key=lambda point: sum(point[name] == value for name, value in wanted.items()),
            default=None,
        )
        if best is None:  # since memory was corrected
            return wanted
        found = {**best, **{name: wanted[name] for name in free}}
        return self._with_most_capacity(found) if sized else found

    def _with_most_capacity(self, wanted: Mapping[str, Choice]) -> dict[str, Choice]:
        """Chooses the cache size that holds most among those that fit beside the rest."""
        sizes = next(p.choices for p in self.parameters if p.name == CACHE)
        points = [{**wanted, CACHE: size} for size in sizes]
        fitting = [point for point in points if self.fits(point)]
        if not fitting:
            return dict(wanted)
        return max(fitting, key=lambda point: int(self.resolve(point).config.cache.expert_bytes))

    def precision_corners(self) -> list[dict[str, Choice]]:
        """The default point at each other precision that fits."""
        default = self.default()
        choices = next((p.choices for p in self.parameters if p.name == BITS), ())
        corners = [{**default, BITS: bits} for bits in choices if bits != default[BITS]]
        return [corner for corner in corners if self.fits(corner)]


def study_base(
    definition: StudyDefinition,
    facts: ModelFacts,
    workload: Workload,
    device: str,
    context_bytes: int | None = None,
) -> EngineConfig:
    """The settings that all trials share: budget, device, KV capacity for workload and tasks, and
    those that the definition fixes. device, context_bytes: of the opened one, see build_space."""
    needed = workload.prompt_tokens + workload.output_tokens
    wanted = max(EngineConfig().kv.max_tokens, needed, definition.task_tokens)
    capacity = min(wanted, max(facts.max_positions, 2))
    if needed > capacity:
        raise DefinitionError(
            f"the workload needs {needed} tokens a sequence, {facts.id} takes {capacity}: "
            "lower output_tokens of the study or of its workload"
        )
    base = base_config(
        device,
        capacity,
        vram_bytes=definition.budget.vram_bytes,
        ram_bytes=definition.budget.ram_bytes,
        disk_bytes=definition.budget.disk_bytes,
        prompt_tokens=workload.prompt_tokens,
    )
    base = with_embeddings_off_device(on_opened_device(base, device, context_bytes), facts)
    return base.overlay(definition.engine)


def build_space(
    definition: StudyDefinition,
    facts: ModelFacts,
    workload: Workload,
    device: str | None = None,
    context_bytes: int | None = None,
) -> SearchSpace:
    """Builds the default parameters, changed by the definition, without choices that never
    fit.

    device: the opened one, by default the definition's; context_bytes: of its driver, None if not
    measured. Raises InfeasibleStudyError with the smallest budget when no point fits.
    """
    base = study_base(definition, facts, workload, device or definition.device, context_bytes)
    choices = _default_choices(facts, workload)
    if one_memory(base):
        if multiplies_bytes():
            choices[ACTIVATIONS] = ACTIVATION_CHOICES
    else:
        choices[PLACEMENT] = PLACEMENT_CHOICES
        if len(chunks := link_chunks(workload.prompt_tokens)) > 1:
            choices[CHUNK] = chunks
    for name in definition.engine:
        choices.pop(name, None)
    if base.precision.scheme in PLANNED:
        choices.pop(BITS, None)  # the plan sets the bits of every expert
    if definition.budget.curve:
        choices[BUDGET] = definition.budget.device_budgets[::-1]
    choices.update({name: tuple(values) for name, values in definition.space.items()})
    parameters = tuple(Parameter(name, values) for name, values in choices.items())
    return _without_hopeless(SearchSpace(parameters, base, facts))


def _default_choices(facts: ModelFacts, workload: Workload) -> dict[str, tuple[Choice, ...]]:
    bits = tuple(bits for bits in BITS_CHOICES if str(bits) in facts.record_bytes)
    bits = (PUBLISHED, *bits) if facts.prequantized else bits
    counts = tuple(c for c in COUNT_CHOICES if int(c) <= workload.sequences)
    depths = DEPTH_CHOICES if "next_gate" in facts.predictors else DEPTH_CHOICES[:1]
    choices = {CACHE: CACHE_CHOICES, DEPTH: depths, BITS: bits, COUNT: counts}
    if facts.non_expert_matrices:
        choices[NON_EXPERT] = NON_EXPERT_CHOICES
    return choices


def _without_hopeless(space: SearchSpace) -> SearchSpace:
    """Drops every choice that fits with no choice of the other parameters."""
    fitting: dict[str, set[Choice]] = {
        p.name: set() if p.name.startswith(_MEMORY_SECTIONS) else set(p.choices)
        for p in space.parameters
    }
    anything = False
    smallest: int | None = None
    reason = ""
    for point in space.memory_points():
        try:
            space.resolve(point)
        except InfeasibleError as error:
            if smallest is None or (error.smallest_bytes or smallest) < smallest:
                smallest, reason = error.smallest_bytes, str(error)
            continue
        anything = True
        for name, choice in point.items():
            fitting[name].add(choice)
    if not anything:
        raise InfeasibleStudyError(
            f"nothing fits: at the least, {reason or 'no point of the space is possible'}"
            f" (sequences have {space.base.kv.max_tokens} tokens: kv.max_tokens)",
            smallest,
        )
    kept = tuple(
        Parameter(p.name, tuple(choice for choice in p.choices if choice in fitting[p.name]))
        for p in space.parameters
    )
    return replace(space, parameters=kept)
