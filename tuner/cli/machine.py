"""`tune doctor` and `tune profile`: examine this machine, and a model on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from engine.config.settings import base_config
from engine.contract.requests import Workload
from engine.facts.machine import Hardware, probe
from engine.facts.timings import ModelTimings, save_timings, timings_path
from engine.native.description import Description, describe
from engine.types import format_bytes
from tuner.cli import options
from tuner.cli.counts import MOST_COUNT
from tuner.cli.output import print_json, print_note, print_table, print_text
from tuner.definition.workload import choose_workload, fit_workload
from tuner.engine_client.session import EngineSession
from tuner.errors import UsageError
from tuner.folders import cache_folder, default_storage
from tuner.store.integrity.check import StoreCheck, check_store

SENSITIVITY_TOKENS = 512


def doctor(
    model: options.Model = None,
    device: options.Device = None,
    parity: Annotated[
        bool, typer.Option("--parity/--no-parity", help="Compare logits with plain transformers.")
    ] = True,
    tokens: Annotated[
        int, typer.Option(min=1, max=MOST_COUNT, help="How many for the comparison.")
    ] = 32,
    store: Annotated[
        bool, typer.Option("--store", help="Check that the store is whole; exits with 1 if not.")
    ] = False,
    storage: options.Storage = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Describe this machine, and check whether a model runs on it, or whether the store is whole.

    Example: tune doctor --model demo

    Example: tune doctor --store
    """
    if storage is not None and not store:
        raise UsageError("--storage names what --store checks: add --store")
    checked = check_store(storage or default_storage()) if store else None
    hardware = probe(cache_folder())
    native = describe()
    document: dict[str, Any] = {"machine": hardware.to_json(), "native": native.to_json()}
    if model is not None or device is not None:
        source = "" if model is None else options.require_model(model)
        with options.open_session(source, device, trust_remote_code) as session:
            document["device"] = {"asked": device or "auto", **session.describe_device()}
            if model is not None:
                document["model"] = _examine(session, parity, tokens)
    if checked is not None:
        document["store"] = checked.to_json()
    if as_json:
        print_json(document)
    else:
        _print_machine(hardware, document.get("device"), native)
        if "model" in document:
            _print_model(document["model"])
        if checked is not None:
            _print_store(checked)
    if checked is not None and not checked.healthy:
        raise typer.Exit(1)


def profile(
    model: options.Model = None,
    vram: options.Vram = None,
    device: options.Device = None,
    bits: Annotated[str, typer.Option(help="Precisions to time, by commas.")] = "16,4",
    timings: Annotated[
        bool, typer.Option("--timings/--no-timings", help="Time this model's passes too.")
    ] = True,
    sensitivity: Annotated[
        bool,
        typer.Option(
            "--sensitivity", help="Measure how much each layer minds fewer bits, for plans."
        ),
    ] = False,
    workload: options.WorkloadSource = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
) -> None:
    """Measure this machine's speeds, and how long the parts of a model's passes take.

    The timings are kept for `tune replay` and for plans; the sensitivities for
    precision.scheme=by_sensitivity. Example: tune profile --model demo --sensitivity
    """
    source, widths = options.require_model(model), options.read_bits(bits)
    hardware = probe(cache_folder())
    with options.open_session(source, device, trust_remote_code) as session:
        print_note("measuring reads, copies and kernels")
        measured = session.profile()
        timed = minded = None
        work = fit_workload(choose_workload(workload or "", ""), session.describe()).workload
        if timings:
            print_note("timing this model's passes: about a minute a precision")
            timed = _calibrate(session, vram, work, widths)
        if sensitivity:
            print_note("measuring each layer at fewer bits")
            minded = _sensitivities(session, vram, work)
    kept = None
    if timed is not None:
        kept = timings_path(cache_folder(), hardware.fingerprint, timed.model, timed.device)
        save_timings(timed, kept)
    if as_json:
        document: dict[str, Any] = {"machine": hardware.to_json(), "profile": measured.to_json()}
        if timed is not None:
            document |= {"timings": timed.to_json(), "timings_path": str(kept)}
        if minded is not None:
            document["sensitivities"] = minded
        print_json(document)
        return
    _print_machine(hardware)
    rows = [
        [f"disk read, {format_bytes(int(size))} records", f"{format_bytes(speed)}/s"]
        for size, speed in measured.read_bytes_per_s.items()
    ]
    rows += [
        [
            f"the same while products run, {format_bytes(int(size))} chunks",
            f"{format_bytes(speed)}/s; products take {measured.read_slowdown[size]:.2f} times",
        ]
        for size, speed in measured.busy_read_bytes_per_s.items()
    ]
    rows.append(["memory copy", f"{format_bytes(measured.memory_bytes_per_s)}/s"])
    if measured.link_bytes_per_s is not None:
        rows.append(["host to device", f"{format_bytes(measured.link_bytes_per_s)}/s"])
    rows += [
        [
            f"1024 x 1024 product, {key} (bits/tokens; a8: activations of 8 bits)",
            f"{spent_ms:.3f} ms",
        ]
        for key, spent_ms in measured.kernel_ms.items()
    ]
    rows += [
        [f"the same on the host, {key}", f"{spent_ms:.3f} ms"]
        for key, spent_ms in measured.host_kernel_ms.items()
    ]
    rows += [
        [f"packed {bits}-bit product wins over a GEMM", f"up to {tokens} tokens"]
        for bits, tokens in measured.crossover_tokens.items()
    ]
    if measured.products:
        rows.append(["products", measured.products])
    if timed is not None:
        rows += _timing_rows(timed)
    print_table("Measured speeds", ["what", "#speed"], rows)
    if kept is not None:
        print_text(f"timings kept in {kept}")
    if minded is not None:
        _print_sensitivities(minded)


def _calibrate(
    session: EngineSession, vram: str | None, work: Workload, bits: tuple[int, ...]
) -> ModelTimings:
    capacity = max(work.prompt_tokens + work.output_tokens, 256)
    budget = options.read_size("--vram", vram) or 0
    base = base_config(capacity=capacity, vram_bytes=budget)
    return session.calibrate(base, work, bits)


def _sensitivities(session: EngineSession, vram: str | None, work: Workload) -> dict[str, Any]:
    budget = options.read_size("--vram", vram) or 0
    base = base_config(vram_bytes=budget)
    coarser = [int(bits) for bits in session.facts.record_bytes if int(bits) < 16]
    return session.request(
        "sensitivities",
        config=base.to_dict(),
        workload=work.to_json(),
        bits=coarser,
        tokens=SENSITIVITY_TOKENS,
    )


def _print_sensitivities(minded: dict[str, Any]) -> None:
    columns = list(minded["layers"][0])
    rows = [
        [number, *(f"{layer[bits]:.2e}" for bits in columns)]
        for number, layer in enumerate(minded["layers"])
    ]
    names = [f"#{bits} bits" for bits in columns]
    print_table("Divergence when one layer alone is coarser, nats a token", ["layer", *names], rows)
    print_text(f"kept in {minded['path']}")


def _timing_rows(timed: ModelTimings) -> list[list[str]]:
    rows = [["non-expert weights of a layer, 1 token", f"{timed.non_expert_s[1] * 1e3:.3f} ms"]]
    for bits, curve in timed.expert_s.items():
        rows += [
            [f"one expert, {bits} bits, {n} tokens", f"{curve[n] * 1e3:.3f} ms"] for n in (1, 16)
        ]
    for bits, source in timed.sources.items():
        rows += [
            [f"{bits}-bit records under load, {n} chunks in flight", f"{format_bytes(rate)}/s"]
            for n, rate in sorted(source.bytes_per_s.items())
        ]
        slower = timed.contention[bits]
        rows.append([f"compute beside {bits}-bit transfers", f"{slower:.2f} times slower"])
    return rows


def _examine(session: EngineSession, parity: bool, tokens: int) -> dict[str, Any]:
    facts = session.facts if parity else session.describe()
    examined: dict[str, Any] = {
        "id": facts.id,
        "fingerprint": facts.fingerprint,
        "family": facts.family,
        "layers": facts.layers,
        "moe_layers": facts.moe_layers,
        "experts": facts.experts,
        "experts_per_token": facts.experts_per_token,
        "non_expert_bytes": facts.non_expert_bytes,
        "expert_bytes": dict(facts.expert_bytes),
        "record_bytes": dict(facts.record_bytes),
        "kv_bytes_per_token": facts.kv_bytes_per_token,
        "predictors": list(facts.predictors),
        "has_tokenizer": facts.has_tokenizer,
        "runtime_bytes": session.runtime_bytes or None,
        "context_bytes": session.context_bytes,
        "parity_max_abs_diff": None,
        "parity_max_abs_logit": None,
    }
    if parity:
        print_note("comparing logits with plain transformers (--no-parity leaves this out)")
        examined.update(session.request("parity", tokens=tokens))
    return examined


def _print_machine(
    hardware: Hardware, device: dict[str, Any] | None = None, native: Description | None = None
) -> None:
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
    if device is not None:
        build = f"torch {device['torch']}, built for {device['built_for']}"
        rows.append(["device", f"{device['asked']} opens {device['name']}; {build}"])
    if native is not None:
        rows.append(["native library", str(native)])
    print_table("This machine", ["what", "found"], rows)


def _print_store(checked: StoreCheck) -> None:
    print_text(f"store {checked.url}")
    for one in checked.findings:
        print_text(f"- {one.sentence}: {one.remedy}")
    if checked.healthy:
        counts = ", ".join(f"{name} {count}" for name, count in checked.counts.items())
        print_text(f"whole, nothing counted twice: {counts}")


def _print_model(model: dict[str, Any]) -> None:
    sizes = ", ".join(f"{bits} bits {format_bytes(n)}" for bits, n in model["expert_bytes"].items())
    rows = [
        ["family", model["family"]],
        ["MoE layers", model["moe_layers"]],
        ["experts a layer", f"{model['experts']}, {model['experts_per_token']} a token"],
        ["non-expert weights", format_bytes(model["non_expert_bytes"])],
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
