"""Renders a config for vLLM: `vllm serve`, as a shell script.

Option names and choices were read in vLLM 0.33.0; the script was not run. vLLM reads no experts
from the disk and moves those on the host in every pass, so less carries over than the options
suggest; the comments list it.
"""

from __future__ import annotations

import math

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.types import format_bytes
from tuner.deployment.document import Deployment
from tuner.deployment.formats import script
from tuner.deployment.formats.checkpoint import CheckpointSource, checkpoint_source
from tuner.deployment.formats.place import place_of, slots_bytes

CARRIED = {
    "cache.expert_bytes": "--cpu-offload-gb",
    "precision.bits": "--quantization",
    "precision.prequantized": "--quantization",
    "batch.count": "--max-num-seqs",
    "batch.size": "--max-num-seqs",
    "prefill.chunk_tokens": "--max-num-batched-tokens",
    "kv.max_tokens": "--max-model-len",
    "kv.bits": "--kv-cache-dtype",
    "compute.dtype": "--dtype",
    "budget.vram_bytes": "--gpu-memory-utilization",
}
LEFT_OUT = {
    "cache.": "the same weights lie on the host for the whole run; none is kept or evicted by use",
    "prefetch.": "weights on the host are read in every pass, whatever the routers choose",
    "transfer.": "there is no queue of experts",
    "precision.": "vLLM's quantizations have groups of their own, all experts are alike, and none "
    "comes coarser on a miss",
    "precision.non_expert_bits": "the non-expert weights stay as the checkpoint has it",
    "batch.order": "the experts of a layer are computed by one fused kernel",
    "plan.": "the number of sequences is what --max-num-seqs says",
    "placement.": "experts are always computed on the device",
    "host.": "what is not on the device lies in host memory",
    "kv.keep_fraction": "keys and values of all positions are kept",
    "kv.elastic": "KV memory is never used for experts",
    "serve.prefix_cache_tokens": "prefixes are cached by blocks, in whatever memory is free",
    "serve.response_cache_entries": "every request is computed",
    "kv.placement": "keys and values lie on the device",
    "io.": "nothing is read from the disk while it runs",
    "kernel.": "vLLM has kernels of its own",
    "compute.capture": "vLLM captures CUDA graphs of its own",
    "cpu.": "vLLM counts the cores itself",
    "device.": "vLLM takes the accelerator it finds; CUDA_VISIBLE_DEVICES chooses one",
    "budget.": "vLLM knows no limit for host memory and disk",
}
# Expert weights at 8 bits with one scale per row, as ours; non-expert weights stay at 16.
_EIGHT_BITS = "int8_per_channel_weight_only"


def render_vllm(deployment: Deployment, facts: ModelFacts) -> str:
    """Renders the script: POSIX sh, every name quoted."""
    config = deployment.config()
    source = checkpoint_source(deployment, facts)
    parts = [
        "#!/bin/sh",
        *script.heading(deployment, "vLLM"),
        "#",
        *script.left_out(deployment, CARRIED, LEFT_OUT),
        "#",
        *(script.comment(note) for note in _notes(deployment)),
        "set -eu",
        _model_line(config, source),
        script.command(["exec", "vllm", "serve", '"$MODEL"'], _options(deployment, facts, source)),
    ]
    return "\n".join(parts) + "\n"


def offloaded_gib(config: EngineConfig, facts: ModelFacts) -> float:
    """GiB of expert weights that the slots do not hold, at this precision, rounded up."""
    bits = "prequantized" if config.precision.prequantized else str(config.precision.bits)
    rest = max(0, facts.expert_bytes[bits] - slots_bytes(config))
    return math.ceil(rest / 2**30 * 100) / 100


def memory_fraction(deployment: Deployment) -> float | None:
    """The budget's fraction of the device's memory, rounded down; None if it is unknown: which
    of several different cards was cuda:0 is not recorded."""
    totals = {gpu["total_bytes"] for gpu in deployment.machine.get("gpus", [])}
    budget_bytes = deployment.budget.vram_bytes
    on_card = deployment.config().device.name.startswith("cuda")
    if not on_card or not budget_bytes or len(totals) != 1 or None in totals:
        return None
    return min(1.0, max(0.01, math.floor(budget_bytes / int(totals.pop()) * 100) / 100))


def _model_line(config: EngineConfig, source: CheckpointSource) -> str:
    if _needs_other_checkpoint(config):
        return f"MODEL=${{MODEL:?name a checkpoint of it with {config.precision.bits}-bit weights}}"
    return script.assign("MODEL", source.hub_id or source.folder or source.name)


def _options(
    deployment: Deployment, facts: ModelFacts, source: CheckpointSource
) -> list[list[str]]:
    config = deployment.config()
    sequences = config.batch.count * config.batch.size
    chunk = max(config.prefill.chunk_tokens * config.batch.size, sequences)
    options = [
        ["--served-model-name", script.quoted(deployment.model.id)],
        ["--dtype", config.compute.dtype],
        ["--max-model-len", str(config.kv.max_tokens)],
        ["--max-num-seqs", str(sequences)],
        ["--max-num-batched-tokens", str(chunk)],
        ["--kv-cache-dtype", "auto" if config.kv.bits == 16 else "fp8"],
        ["--host", "127.0.0.1"],
        ["--port", "8000"],
    ]
    if source.hub_id is not None and not _needs_other_checkpoint(config):
        options.append(["--revision", script.quoted(source.revision)])
    if config.precision.bits == 8 and not config.precision.prequantized:
        options.append(["--quantization", _EIGHT_BITS])
    rest = offloaded_gib(config, facts)
    if rest:
        options += [["--cpu-offload-gb", f"{rest:g}"], ["--cpu-offload-params", "experts"]]
    fraction = memory_fraction(deployment)
    if fraction is not None:
        options.append(["--gpu-memory-utilization", f"{fraction:g}"])
    return options


def _needs_other_checkpoint(config: EngineConfig) -> bool:
    """Whether the checkpoint must be quantized: vLLM itself quantizes only to 8 bits at load
    time."""
    return config.precision.bits < 8 and not config.precision.prequantized


def _notes(deployment: Deployment) -> list[str]:
    config = deployment.config()
    notes = ["Option names are those of vLLM 0.33.0. --enable-expert-parallel is for several GPUs."]
    if place_of(config) != "accelerator":
        notes.append(
            f"The config was measured on {config.device.name}; these options are for one GPU with "
            "the same budget, and were derived, not tried."
        )
    if _needs_other_checkpoint(config):
        notes.append(
            f"vLLM makes no {config.precision.bits}-bit weights as it loads: name a checkpoint "
            "that has them, published or made with llm-compressor (AWQ, GPTQ; 4 bits are the usual "
            "least)."
        )
    if config.precision.bits == 8 and not config.precision.prequantized:
        notes.append(f"{_EIGHT_BITS} was called experts_int8 before; experts only, as here.")
    if config.kv.bits == 4:
        notes.append("kv.bits = 4: fp8 is the nearest that all of vLLM's backends share.")
    if memory_fraction(deployment) is None:
        limit = format_bytes(deployment.budget.vram_bytes)
        notes.append(
            "The device's whole memory is not known: add --gpu-memory-utilization, the fraction "
            "that "
            f"{limit} are of it."
        )
    return notes
