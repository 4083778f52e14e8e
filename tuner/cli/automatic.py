"""The choices that nobody made: what `auto` comes to for this model, machine and budget, and why.

In: a resolved config and the facts it follows from. Out: one line for each setting that a rule
decides. Settings that a study searches are named, not decided.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from engine.config.settings import EngineConfig, KvConfig
from engine.contract.requests import Workload
from engine.facts.memory_limit import usable_memory
from engine.facts.model import ModelFacts
from engine.memory.host import FREE_FRACTION
from engine.memory.kv import one_memory
from engine.memory.plan import MemoryPlan
from engine.memory.records import all_records_bytes
from engine.native.description import describe
from engine.types import format_bytes
from tuner.definition.study import StudyDefinition
from tuner.search.space import build_space


@dataclass(frozen=True)
class AutomaticChoice:
    """A setting, what it comes to here, and the rule."""

    setting: str
    value: str
    reason: str

    def to_json(self) -> dict[str, str]:
        """A JSON-ready dict."""
        return asdict(self)


def automatic_choices(
    config: EngineConfig, memory: MemoryPlan, facts: ModelFacts, workload: Workload
) -> list[AutomaticChoice]:
    """The choices of one resolved config. workload: what a study would run."""
    found = [
        AutomaticChoice("device.name", config.device.name, _device_reason(config)),
        _cache(config, memory, facts),
        _capacity(config, facts, workload),
        *_host(config, facts),
        *_processor(config),
    ]
    if facts.prequantized is not None:
        kept = f"{facts.prequantized.bits}, as published ({facts.prequantized.name})"
        found.append(AutomaticChoice("precision.bits", kept, "its codes are kept as they are"))
    searched = ", ".join(_searched(config, facts, workload))
    return [*found, AutomaticChoice("searched by `tune`", searched, "they trade off: measured")]


def _device_reason(config: EngineConfig) -> str:
    if config.device.name == "cpu":
        return "asked for, or no accelerator answers"
    return "asked for, or the accelerator that answers"


def _cache(config: EngineConfig, memory: MemoryPlan, facts: ModelFacts) -> AutomaticChoice:
    total = facts.moe_layers * facts.experts
    share = f"{memory.slots} of {total} experts at {config.precision.bits} bits"
    value = f"{format_bytes(memory.slots_bytes)}, {share}"
    if memory.slots >= total:
        return AutomaticChoice("cache.expert_bytes", value, "all of them fit")
    rest = format_bytes(memory.total_bytes - memory.slots_bytes)
    reason = f"what the budget leaves beside {rest} of weights, keys, values and workspace"
    return AutomaticChoice("cache.expert_bytes", value, reason)


def _capacity(config: EngineConfig, facts: ModelFacts, workload: Workload) -> AutomaticChoice:
    needed = workload.prompt_tokens + workload.output_tokens
    tokens = config.kv.max_tokens
    usual = KvConfig().max_tokens
    if tokens == needed:
        reason = f"the workload takes {needed}"
    elif tokens == facts.max_positions:
        reason = "the model takes no more"
    elif tokens == usual:
        reason = f"the usual; the workload takes {needed}"
    else:
        reason = "asked for"
    return AutomaticChoice("kv.max_tokens", str(tokens), reason)


def _host(config: EngineConfig, facts: ModelFacts) -> list[AutomaticChoice]:
    """What lies in RAM beside a device with memory of its own, and who computes there."""
    if one_memory(config):
        return []
    everything = sum(all_records_bytes(config, facts).values())
    held = int(config.host.bytes)
    free = int(FREE_FRACTION * usable_memory()[1])
    reason = "all experts"
    if held < everything:
        reason = f"what --ram leaves; all experts take {format_bytes(everything)}"
    elif not config.budget.ram_bytes and free < held:
        held = free
        reason = (
            f"{FREE_FRACTION:.0%} of the memory that is free now; all experts take "
            f"{format_bytes(everything)}: the others come from the disk, unless --ram allows more"
        )
    embeddings: list[AutomaticChoice] = []
    if config.placement.embeddings == "host":
        size = format_bytes(facts.embedding_bytes)
        why = f"a token reads one row of the table, which would take {size} of the device"
        embeddings = [AutomaticChoice("placement.embeddings", "host", why)]
    return [
        AutomaticChoice("host.bytes", format_bytes(held), reason),
        *embeddings,
        AutomaticChoice(
            "placement.name",
            config.placement.name,
            "an expert that is missing is computed on the host or moved, whichever ends first"
            if config.placement.name == "earliest"
            else "asked for",
        ),
        AutomaticChoice(
            "prefill.chunk_tokens",
            str(config.prefill.chunk_tokens),
            "a chunk moves nearly all experts of a layer: longer ones do so less often",
        ),
    ]


def _processor(config: EngineConfig) -> list[AutomaticChoice]:
    """What multiplies on the host, which is the device where there is no other."""
    native = describe()
    if native.reason is not None:
        kernel = AutomaticChoice("kernel.name", "torch's products", native.reason)
        return [kernel] if config.device.name == "cpu" else []
    threads = config.cpu.threads or native.threads
    return [
        AutomaticChoice(
            "kernel.name",
            f"native, {native.instruction_set}",
            "the best instruction set that gives the reference's bits here",
        ),
        AutomaticChoice("cpu.threads", str(threads), "the physical cores of this process"),
    ]


def _searched(config: EngineConfig, facts: ModelFacts, workload: Workload) -> list[str]:
    definition = StudyDefinition.model_validate(
        {"model": facts.id, "budget": {"vram_bytes": config.budget.vram_bytes}}
    )
    space = build_space(definition, facts, workload, config.device.name)
    return [parameter.name for parameter in space.parameters if len(parameter.choices) > 1]
