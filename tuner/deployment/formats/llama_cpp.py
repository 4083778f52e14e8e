"""Renders a config for llama.cpp: makes the GGUF, then runs llama-server, as one shell script.

Option names were read in build 11434 and looked up in the wheel xllamacpp 2026.10.11549; the script
was not run. Comments list the settings that llama.cpp cannot express.
"""

from __future__ import annotations

import re

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts
from engine.types import format_bytes
from tuner.deployment.document import Deployment
from tuner.deployment.formats import script
from tuner.deployment.formats.checkpoint import CheckpointSource, checkpoint_source
from tuner.deployment.formats.gguf import (
    PLAIN,
    GgufType,
    dense_type,
    expert_layer_bytes,
    expert_type,
)
from tuner.deployment.formats.place import place_of, slots_bytes

CARRIED = {
    "cache.expert_bytes": "--n-cpu-moe",
    "precision.bits": "--tensor-type",
    "precision.prequantized": "--tensor-type",
    "precision.non_expert_bits": "--tensor-type",
    "batch.count": "--parallel",
    "batch.size": "--parallel",
    "prefill.chunk_tokens": "--ubatch-size",
    "kv.max_tokens": "--ctx-size",
    "kv.bits": "--cache-type-k",
    "kv.placement": "--no-kv-offload",
    "compute.dtype": "--outtype",
    "device.name": "--n-gpu-layers",
}
LEFT_OUT = {
    "cache.": "experts stay where they were put at the start, layer by layer; none is evicted",
    "prefetch.": "nothing is predicted, and nothing is fetched ahead",
    "transfer.": "there is no queue: experts on the host are multiplied there, not moved",
    "precision.": "GGUF types have groups of their own, and one type holds for all experts of a "
    "layer, decided when the file is made and not on a miss",
    "batch.order": "the experts of a layer are computed in llama.cpp's own order",
    "plan.": "the number of sequences is what --parallel says",
    "placement.": "experts that are not on the device are always computed on the host",
    "host.": "what is not on the device lies in host memory or in the page cache",
    "kv.keep_fraction": "keys and values of all positions are kept",
    "kv.elastic": "KV memory is never used for experts",
    "serve.prefix_cache_tokens": "each slot of the server keeps what its own last prompt left",
    "serve.response_cache_entries": "every request is computed",
    "io.": "the file is mapped or read whole; there are no reading threads to set",
    "kernel.": "llama.cpp has kernels of its own",
    "device.context_bytes": "it is of this engine's process; llama.cpp has a context of its own",
    "compute.capture": "llama.cpp decides by itself when it captures CUDA graphs",
    "device.correction_bytes": "it is of this engine's memory; llama.cpp's was not measured",
    "cpu.": "llama.cpp counts the cores itself; --threads sets another number",
    "budget.": "llama.cpp keeps no budget: the options were computed so that it should fit one",
}
_EXPERTS = "ffn_.*exps"  # the same tensors as --cpu-moe


def render_llama_cpp(deployment: Deployment, facts: ModelFacts) -> str:
    """Renders the script: POSIX sh, every name quoted."""
    config = deployment.config()
    source = checkpoint_source(deployment, facts)
    kind = expert_type(config, facts)
    parts = [
        "#!/bin/sh",
        *script.heading(deployment, "llama.cpp"),
        "#",
        *script.left_out(deployment, CARRIED, LEFT_OUT),
        "#",
        *(script.comment(note) for note in _notes(config)),
        "set -eu",
        "LLAMA_CPP=${LLAMA_CPP:-llama.cpp}  # its source folder, for the converter",
        script.assign("GGUF", f"{_file_stem(source)}-{kind.name.lower()}.gguf"),
        script.assign("CHECKPOINT", source.folder or _file_stem(source)),
        "",
        'if [ ! -f "$GGUF" ]; then',
        *_conversion(config, source, kind),
        "fi",
        "",
        *(script.comment(note) for note in _placement_notes(deployment, facts, kind)),
        script.command(["exec", "llama-server"], _options(deployment, facts, kind)),
    ]
    return "\n".join(parts) + "\n"


def layers_on_host(config: EngineConfig, facts: ModelFacts, kind: GgufType) -> int:
    """The N of --n-cpu-moe: the first N of all layers, so that the experts of the others fit into
    the bytes of the slots. Layers without experts are counted as the first ones."""
    fitting = slots_bytes(config) // expert_layer_bytes(kind, facts)
    left = max(0, facts.moe_layers - fitting)
    return left + facts.layers - facts.moe_layers if left else 0


def _options(deployment: Deployment, facts: ModelFacts, kind: GgufType) -> list[list[str]]:
    config = deployment.config()
    sequences = config.batch.count * config.batch.size
    chunk = max(config.prefill.chunk_tokens * config.batch.size, sequences)
    return [
        ["--model", '"$GGUF"'],
        ["--alias", script.quoted(deployment.model.id)],
        *_device_options(config, facts, kind),
        ["--ctx-size", str(config.kv.max_tokens * sequences)],
        ["--parallel", str(sequences)],
        ["--batch-size", str(chunk)],
        ["--ubatch-size", str(chunk)],
        *_kv_options(config),
        ["--host", "127.0.0.1"],
        ["--port", "8000"],
    ]


def _device_options(config: EngineConfig, facts: ModelFacts, kind: GgufType) -> list[list[str]]:
    if place_of(config) == "host":
        if _is_mapped(config, facts):
            return [["--device", "none"], ["--load-mode", "mmap"], ["--no-repack"]]
        return [["--device", "none"], ["--load-mode", "none"]]
    options = [["--n-gpu-layers", str(facts.layers + 1)]]  # and the output layer
    left = layers_on_host(config, facts, kind)
    if left:
        every = left == facts.layers
        options.append(["--cpu-moe"] if every else ["--n-cpu-moe", str(left)])
    return options


def _kv_options(config: EngineConfig) -> list[list[str]]:
    options = []
    if config.kv.bits != 16:
        kind = "q8_0" if config.kv.bits == 8 else "q4_0"
        options += [["--cache-type-k", kind], ["--cache-type-v", kind], ["--flash-attn", "on"]]
    if config.kv.placement == "host" and place_of(config) != "host":
        options.append(["--no-kv-offload"])
    return options


def _conversion(config: EngineConfig, source: CheckpointSource, kind: GgufType) -> list[str]:
    """Commands that download a hub id, convert at 16 bits, and quantize experts and non-expert
    weights."""
    plain = PLAIN[config.compute.dtype]
    dense = dense_type(config)
    lines = []
    if source.hub_id is not None:
        revision = ["--revision", script.quoted(source.revision)]
        fetch = ["hf", "download", script.quoted(source.hub_id)]
        lines.append(script.command(fetch, [revision, ["--local-dir", '"$CHECKPOINT"']], "  "))
    kept = kind.name == "mxfp4" or kind == plain  # the converter keeps mxfp4 experts
    quantize = not kept or dense != plain
    target = '"$GGUF.16"' if quantize else '"$GGUF.partial"'
    convert = ["python3", '"$LLAMA_CPP/convert_hf_to_gguf.py"', '"$CHECKPOINT"']
    outputs = [["--outtype", plain.name], ["--outfile", target]]
    lines.append(script.command(convert, outputs, "  "))
    if quantize:
        base = kind if kind != plain else dense
        types = [
            ["--tensor-type", script.quoted(f"{_EXPERTS}={kind.name}")],
            ["--tensor-type", script.quoted(f".={dense.name}")],
            ["--token-embedding-type", plain.name],
            [target, '"$GGUF.partial"', base.file_name],
        ]
        lines += [script.command(["llama-quantize"], types, "  "), f"  rm {target}"]
    return [*lines, '  mv "$GGUF.partial" "$GGUF"']


def _notes(config: EngineConfig) -> list[str]:
    notes = [
        "Option names are those of llama.cpp build 11434. Older builds say --mmap and --no-mmap "
        "for --load-mode. llama-cli takes the same ones but --alias, --host and --port.",
        "To see what it does here: tune bench, with this config's YAML and --baselines.",
    ]
    if place_of(config) == "emulated":
        notes.append("The machine was emulated; the options are for a real one of that kind.")
    return notes


def _placement_notes(deployment: Deployment, facts: ModelFacts, kind: GgufType) -> list[str]:
    config = deployment.config()
    budget = deployment.budget.vram_bytes
    if place_of(config) == "host":
        if not _is_mapped(config, facts) or not budget:
            return []
        return [
            "Mapped: the page cache is what keeps experts, and only a memory group bounds it: "
            f"systemd-run --user --scope -p MemoryMax={budget} -p MemorySwapMax=0 sh THIS_FILE"
        ]
    notes = [
        f"{kind.file_name}: {format_bytes(expert_layer_bytes(kind, facts))} of experts a layer; "
        f"the slots took {format_bytes(slots_bytes(config))}."
    ]
    if layers_on_host(config, facts, kind):
        cache_mib = slots_bytes(config) >> 20
        notes.append(
            f"Newer builds (11549) also know --cpu-moe --moe-cache-mib {cache_mib}: a cache of "
            "experts on the device, nearer to what was measured than layers that stay there."
        )
    return notes


def _is_mapped(config: EngineConfig, facts: ModelFacts) -> bool:
    """Whether the file should be mapped: it may be read whole if the slots hold all experts."""
    bits = "prequantized" if config.precision.prequantized else str(config.precision.bits)
    return slots_bytes(config) < facts.expert_bytes[bits]


def _file_stem(source: CheckpointSource) -> str:
    """A file name that no program mistakes for an option or a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", source.name).strip("-.") or "model"
