"""`tune doctor` and `tune profile`: this machine, and a model on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.hardware import Hardware, probe
from engine.types import format_bytes
from tuner.cli import options
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.folders import cache_folder
from tuner.session import EngineSession


def doctor(
    model: options.Model = None,
    device: options.Device = None,
    parity: Annotated[
        bool, typer.Option("--parity/--no-parity", help="Compare logits with plain transformers.")
    ] = True,
    tokens: Annotated[int, typer.Option(min=1, help="How many for the comparison.")] = 32,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Say what this machine is, and whether a model runs on it.

    Example: tune doctor --model demo
    """
    hardware = probe(cache_folder())
    document: dict[str, Any] = {"machine": hardware.to_json()}
    if model is not None:
        source = options.require_model(model)
        with options.open_session(source, device, trust_remote_code) as session:
            document["model"] = _examine(session, parity, tokens)
    if as_json:
        print_json(document)
        return
    _print_machine(hardware)
    if "model" in document:
        _print_model(document["model"])


def profile(
    model: options.Model = None,
    device: options.Device = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Measure this machine's speeds at a model's record sizes.

    Example: tune profile --model demo --json
    """
    source = options.require_model(model)
    hardware = probe(cache_folder())
    with options.open_session(source, device, trust_remote_code) as session:
        print_note("measuring reads, copies and kernels")
        measured = session.profile()
    if as_json:
        print_json({"machine": hardware.to_json(), "profile": measured.to_json()})
        return
    _print_machine(hardware)
    rows = [
        [f"disk read, {format_bytes(int(size))} records", f"{format_bytes(speed)}/s"]
        for size, speed in measured.read_bytes_per_s.items()
    ]
    rows.append(["memory copy", f"{format_bytes(measured.memory_bytes_per_s)}/s"])
    if measured.link_bytes_per_s is not None:
        rows.append(["host to device", f"{format_bytes(measured.link_bytes_per_s)}/s"])
    rows += [
        [f"expert product, {key} (bits/tokens)", f"{spent_ms:.3f} ms"]
        for key, spent_ms in measured.kernel_ms.items()
    ]
    print_table("Measured speeds", ["what", "#speed"], rows)


def _examine(session: EngineSession, parity: bool, tokens: int) -> dict[str, Any]:
    facts = session.facts
    examined: dict[str, Any] = {
        "id": facts.id,
        "fingerprint": facts.fingerprint,
        "family": facts.family,
        "layers": facts.layers,
        "moe_layers": facts.moe_layers,
        "experts": facts.experts,
        "experts_per_token": facts.experts_per_token,
        "dense_bytes": facts.dense_bytes,
        "expert_bytes": dict(facts.expert_bytes),
        "record_bytes": dict(facts.record_bytes),
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "predictors": list(facts.predictors),
        "has_tokenizer": facts.has_tokenizer,
        "runtime_bytes": session.runtime_bytes,
        "parity_max_abs_diff": None,
        "parity_max_abs_logit": None,
    }
    if parity:
        print_note("comparing logits with plain transformers (--no-parity leaves this out)")
        examined.update(session.request("parity", tokens=tokens))
    return examined


def _print_machine(hardware: Hardware) -> None:
    rows = [
        ["processor", f"{hardware.cpu}, {hardware.cores} cores, {hardware.threads} threads"],
        [
            "memory",
            f"{format_bytes(hardware.ram_bytes)}, "
            f"{format_bytes(hardware.ram_available_bytes)} available",
        ],
        ["system", f"{hardware.system} {hardware.kernel}" + (" (WSL)" if hardware.wsl else "")],
        ["disk", f"{format_bytes(hardware.disk_free_bytes)} free in {hardware.disk_folder}"],
    ]
    for gpu in hardware.gpus:
        total = "?" if gpu.total_bytes is None else format_bytes(gpu.total_bytes)
        link = f", PCIe {gpu.pcie_generation} x{gpu.pcie_width}" if gpu.pcie_generation else ""
        rows.append([f"GPU {gpu.index}", f"{gpu.name}, {total}{link}"])
    if not hardware.gpus:
        rows.append(["GPU", "none with an NVIDIA driver; --device cpu offloads from disk to RAM"])
    print_table("This machine", ["what", "found"], rows)


def _print_model(model: dict[str, Any]) -> None:
    sizes = ", ".join(f"{bits} bits {format_bytes(n)}" for bits, n in model["expert_bytes"].items())
    rows = [
        ["family", model["family"]],
        ["MoE layers", model["moe_layers"]],
        ["experts a layer", f"{model['experts']}, {model['experts_per_token']} a token"],
        ["dense part", format_bytes(model["dense_bytes"])],
        ["all experts", sizes],
        ["predictors", ", ".join(model["predictors"])],
        ["tokenizer", "yes" if model["has_tokenizer"] else "none"],
    ]
    print_table(f"Model {model['id']}", ["what", "found"], rows)
    difference = model["parity_max_abs_diff"]
    if difference is not None:
        print_text(
            f"logits differ from plain transformers by at most {difference:.3g} "
            f"(largest logit {model['parity_max_abs_logit']:.3g})"
        )
