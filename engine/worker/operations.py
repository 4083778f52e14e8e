"""The operations of a worker: one method for each operation of engine.contract.messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.config.settings import EngineConfig
from engine.contract.requests import TaskOptions, Workload
from engine.device.registry import device_name, named_card, open_device
from engine.errors import EngineError, ProtocolError
from engine.evaluate.divergence import diverge
from engine.evaluate.evaluate import evaluate
from engine.evaluate.journal import journal_path
from engine.evaluate.parity import check_parity
from engine.evaluate.sensitivity import measure_sensitivities
from engine.experts.kernels.crossover import keep_crossovers
from engine.experts.kernels.probe import probe_support
from engine.experts.kernels.registry import KernelSupport
from engine.experts.tiers.pack import ensure_pack
from engine.facts.machine import probe
from engine.layout.record import Part
from engine.measure.energy import open_energy_meter
from engine.measure.measure import memory_reading
from engine.measure.pass_through import run_pass
from engine.measure.recording import TraceRecorder
from engine.measure.workload import pick, tokenize
from engine.memory.plan import resolve
from engine.model.description import check_description
from engine.model.facts import describe
from engine.model.headers import locate_headers
from engine.model.hub import Location
from engine.model.loader import load_model
from engine.model.tokenizer import encode_enough, load_tokenizer
from engine.precision.allocate import save_sensitivities, sensitivities_path
from engine.profile.machine import profile_machine
from engine.profile.model import calibrate
from engine.run.generate import SamplingDefaults, encode_prompt, generate
from engine.run.sampling import SamplingOptions
from engine.types import BITS
from engine.worker.baseline import settle_baseline
from engine.worker.engine_host import EngineHost

Emit = Callable[[dict[str, Any]], None]
TEMPERATURE, TOP_P = 0.7, 0.95  # of a text where neither the user nor the checkpoint says


class Operations:
    """Holds at most one open engine.

    cache_folder: packs, self-tests, references; emit: sends an event of the current request.
    """

    def __init__(self, cache_folder: Path, emit: Emit) -> None:
        self._host = EngineHost(cache_folder, emit, settle_baseline)
        self._journal: Path | None = None
        self._handlers: dict[str, Callable[..., dict[str, Any]]] = {
            "device": self.describe_device,
            "describe": self.describe,
            "open": self.open,
            "configure": self.configure,
            "measure": self.measure,
            "check_tasks": self.check_tasks,
            "evaluate": self.evaluate,
            "discard_journal": self.discard_journal,
            "generate": self.generate,
            "pack": self.pack,
            "profile": self.profile,
            "parity": self.parity,
            "divergence": self.divergence,
            "trace": self.trace,
            "calibrate": self.calibrate,
            "sensitivities": self.sensitivities,
            "close": self.close,
        }

    def run(self, operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Dispatch. Raises ProtocolError for an unknown operation or argument."""
        handler = self._handlers.get(operation)
        if handler is None:
            raise ProtocolError(
                f"unknown operation '{operation}'; known are {', '.join(self._handlers)}"
            )
        try:
            return handler(**arguments)
        except torch.OutOfMemoryError as error:
            raise self._host.out_of_memory(error) from error
        except TypeError as error:
            if "argument" in str(error) and f"{handler.__name__}()" in str(error):
                raise ProtocolError(f"{operation}: {error}") from None
            raise

    def describe_device(self, device: str = "auto") -> dict[str, Any]:
        """What a device's name opens here, and torch's build. Raises UsageError if there is no
        such device."""
        built = torch.accelerator.current_accelerator()
        name = device_name(device)
        return {
            "name": name,
            "card": named_card(name),
            "torch": str(torch.__version__),
            "built_for": "cpu" if built is None else built.type,
        }

    def describe(
        self,
        model: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Describe a model before its weights are read, or fetched."""
        location = self._located(model, trust_remote_code, revision)
        found = load_model(
            location.folder, torch.bfloat16, trust_remote_code=trust_remote_code, weights=False
        )
        name = device_name(device)
        return {
            "facts": describe(found, model, location.revision).to_json(),
            "device": name,
            "card": named_card(name),
        }

    def _located(self, model: str, trust_remote_code: bool, revision: str | None) -> Location:
        return locate_headers(
            model,
            revision,
            self._host.cache_folder,
            check=lambda folder: check_description(folder, trust_remote_code=trust_remote_code),
        )

    def open(
        self,
        model: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> dict[str, Any]:
        """Load non-expert weights; experts stay on disk. A hub id is fetched first."""
        return self._host.open(model, device, trust_remote_code, revision)

    def configure(self, config: dict[str, Any]) -> dict[str, Any]:
        """Reconfigure in place; makes a missing pack first."""
        resolved = self._host.configure(config)
        return {"config": resolved.config.to_dict(), "memory": resolved.memory.to_json()}

    def measure(
        self,
        workload: dict[str, Any],
        repeats: int = 1,
        warm_up: bool = True,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Run repeats numbered from `seed`; the same number selects the same texts."""
        meter = open_energy_meter(self._host.engine.device.torch_device)
        return self._host.measure(workload, repeats, warm_up, seed, meter).to_json()

    def evaluate(
        self,
        tasks: list[str],
        reference: bool = False,
        limit: int | None = None,
        num_fewshot: int | None = None,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Run lm-eval on the configured engine; resumes a killed evaluation with the same
        settings."""
        engine = self._host.engine
        report = evaluate(
            engine,
            self._host.tokenizer,
            tasks,
            TaskOptions(limit, num_fewshot, apply_chat_template, fewshot_as_multiturn, seed),
            cache_folder=self._host.cache_folder,
            reference=reference,
            progress=self._host.progress,
        )
        assert engine.config is not None
        self._journal = journal_path(engine.facts, engine.config, self._host.cache_folder)
        return report.to_json()

    def check_tasks(
        self,
        model: str,
        tasks: list[str],
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Load the tasks and their data, and count the tokens that each needs; no weights."""
        from engine.evaluate.check import check_tasks

        folder = self._located(model, trust_remote_code, revision).folder
        tokenizer = load_tokenizer(folder, model, trust_remote_code=trust_remote_code)
        needs = check_tasks(tokenizer, model, tasks, TaskOptions(**options))
        return {"needs": [need.to_json() for need in needs]}

    def discard_journal(self) -> dict[str, Any]:
        """Drop the resume journal of the last evaluation, which has been stored."""
        if self._journal is not None:
            self._journal.unlink(missing_ok=True)
        self._journal = None
        return {}

    def generate(
        self,
        prompt: str,
        chat: bool = False,
        max_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Generate text; pieces are sent as token events. None: the checkpoint's own sampling
        values, else 0.7 and 0.95."""
        engine = self._host.engine
        tokenizer = self._host.tokenizer
        result = generate(
            engine,
            tokenizer,
            encode_prompt(tokenizer, prompt, chat=chat),
            max_tokens=max_tokens,
            sampling=_sampling(SamplingDefaults.of(engine), temperature, top_p, seed),
            on_text=lambda text: self._host.emit({"event": "token", "text": text}),
        )
        memory = memory_reading(engine, self._host.runtime_bytes)
        later = len(result.tokens) - 1
        decode_s = result.total_s - result.ttft_s
        return {
            "text": result.text,
            "tokens": list(result.tokens),
            "metrics": {
                "prompt_tokens": result.prompt_tokens,
                "output_tokens": len(result.tokens),
                "ttft_ms": result.ttft_s * 1e3,
                "tpot_ms": decode_s / later * 1e3 if later > 0 else None,
                "output_tps": len(result.tokens) / result.total_s,
                "external_peak_bytes": memory.external_peak_bytes,
            },
        }

    def pack(self, bits: int | str, group_size: int = 64) -> dict[str, Any]:
        """Pack ahead of a run; resumes an incomplete pack."""
        engine = self._host.engine
        config = EngineConfig().overlay(
            {"precision.bits": bits, "precision.group_size": group_size}
        )
        resolved, _ = resolve(config, engine.facts)
        record = engine.record_format(resolved, engine.kernel_support(resolved))
        pack = ensure_pack(
            self._host.cache_folder,
            engine.model,
            record,
            progress=lambda done, total: self._host.progress("pack", done, total),
        )
        size = pack.records.stat().st_size
        return {"path": str(pack.folder), "bytes": size, "records": len(pack.checksums)}

    def profile(self, device: str = "auto") -> dict[str, Any]:
        """Measure this machine (needs no model). device: to open, unless a model is open."""
        opened = self._host.engine.device if self._host.is_open else open_device(device)
        parts = (Part("weight", (1024, 1024)),)
        place, folder = opened.torch_device, self._host.cache_folder
        support = KernelSupport(
            tuple(
                name
                for bits in BITS
                for name in probe_support(parts, bits, 64, torch.bfloat16, place, folder).names
            )
        )
        measured = profile_machine(opened, self._host.cache_folder, support)
        if measured.crossover_tokens:
            keep_crossovers(self._host.cache_folder, measured.crossover_tokens, place)
        return {
            **measured.to_json(),
            "code_layout": support.code_layout(),
            "hardware": probe(self._host.cache_folder).to_json(),
        }

    def divergence(self, text: str, tokens: int, reference: bool = False) -> dict[str, Any]:
        """Decode-mode divergence of the present configuration on the first tokens of a text.

        reference: keep this configuration's output as the reference for others. Raises EngineError
        if no reference was kept.
        """
        engine = self._host.engine
        ids = encode_enough(self._host.tokenizer, text, tokens)[:tokens]
        found = diverge(engine, ids, self._host.cache_folder, "decode", reference=reference)
        if found is None:
            raise EngineError("no reference was kept of this text: run it at 16 bits first")
        return {
            "kld_mean": found.kld_mean,
            "top1_agreement": found.top1_agreement,
            "tokens": len(ids),
        }

    def trace(
        self,
        path: str,
        workload: dict[str, Any],
        repeats: int = 1,
        seed: int = 0,
        gate_inputs: bool = False,
    ) -> dict[str, Any]:
        """Record the routing of repeats numbered from `seed` on the configured engine."""
        engine = self._host.engine
        task = Workload.from_json(workload)
        texts = tokenize(task, self._host.tokenizer)
        recorder = TraceRecorder(engine.facts, gate_inputs=gate_inputs)
        engine.record(recorder)
        for repeat in range(seed, seed + repeats):
            own = pick(texts, task.sequences, repeat)
            run_pass(engine, own, task.output_tokens, seed=repeat)
            self._host.progress("trace", repeat - seed + 1, repeats)
        engine.record(None)
        found = recorder.trace(
            workload=task.name,
            repeats=repeats,
            seed=seed,
            output_tokens=task.output_tokens,
            model_facts=engine.facts.to_json(),
        )
        found.save(Path(path))
        return {
            "path": path,
            "bytes": Path(path).stat().st_size,
            "passes": len(found.passes),
            "tokens": int(found.experts.shape[0]),
        }

    def calibrate(
        self, config: dict[str, Any], workload: dict[str, Any], bits: list[int]
    ) -> dict[str, Any]:
        """Time the parts of this model's passes: ModelTimings."""
        task = Workload.from_json(workload)
        timings = calibrate(
            self._host.engine,
            tokenize(task, self._host.tokenizer),
            EngineConfig.from_dict(config),
            [one for one in BITS if one in bits],
            self._host.progress,
        )
        return timings.to_json()

    def sensitivities(
        self, config: dict[str, Any], workload: dict[str, Any], bits: list[int], tokens: int
    ) -> dict[str, Any]:
        """Measure each layer's sensitivity to fewer bits; stored in the cache folder for plans."""
        engine = self._host.engine
        base = EngineConfig.from_dict(config)
        wanted = [one for one in BITS if one in bits]
        texts = tokenize(Workload.from_json(workload), self._host.tokenizer)
        ids = [token for text in texts for token in (*text.prompt, *text.forced)][:tokens]
        losses = measure_sensitivities(engine, ids, wanted, base, self._host.progress)
        path = sensitivities_path(self._host.cache_folder, engine.facts, base)
        save_sensitivities(path, losses, tokens=len(ids), bits=wanted)
        return {"path": str(path), "layers": [dict(curve) for curve in losses], "tokens": len(ids)}

    def parity(self, tokens: int = 16) -> dict[str, Any]:
        """Compare with plain transformers in float32."""
        result = check_parity(self._host.engine, tokens)
        return {
            "parity_max_abs_diff": result.max_abs_diff,
            "parity_max_abs_logit": result.max_abs_logit,
        }

    def close(self) -> dict[str, Any]:
        """Close the model."""
        self._host.close()
        return {}


def _sampling(
    own: SamplingDefaults, temperature: float | None, top_p: float | None, seed: int
) -> SamplingOptions:
    made = own.options(seed, TEMPERATURE, TOP_P)
    return replace(
        made,
        temperature=made.temperature if temperature is None else temperature,
        top_p=made.top_p if top_p is None else top_p,
    )
