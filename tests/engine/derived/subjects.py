"""One of every kind of derived file: how it is written and read, and the right value."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine.baselines import gguf_file
from engine.config.settings import EngineConfig
from engine.derived.file import DerivedKind, save_json
from engine.derived.lines import LineFile
from engine.evaluate import divergence
from engine.evaluate.journal import JOURNAL, Journal
from engine.experts.encoding.codec import encode
from engine.experts.kernels import crossover, probe
from engine.experts.kernels.registry import NO_KERNELS
from engine.experts.tiers import pack
from engine.facts.machine import MachineProfile
from engine.facts.timings import (
    TIMINGS,
    ModelTimings,
    ReadyTimings,
    load_timings,
    save_timings,
)
from engine.memory.plan import resolve
from engine.model import headers
from engine.policy import learned
from engine.precision import allocate
from engine.run.engine import Engine
from engine.serve.batching.response_cache import ANSWERS, ResponseCache
from engine.serve.batching.sequence import StepOutput
from engine.trace.trace import TRACE, load_kept_trace
from engine.types import ExpertId
from tests.engine.memory.test_plan import make_facts
from tests.engine.policy.made import make_trace
from tests.engine.serve.made import want
from tuner.engine_client.machine_profile import PROFILE, keep_profile, load_profile
from tuner.search.twin import Predictions
from tuner.study import prepare
from tuner.study.memory import SEEN, SeenMemory, keep_seen, load_seen


@dataclass(frozen=True)
class Subject:
    """A derived file. write: makes it; read: its value, None where there is none; makes_again:
    reading makes it again, so that None is wrong."""

    kind: DerivedKind
    path: Path
    write: Callable[[], object]
    read: Callable[[], Any]
    right: Any
    makes_again: bool = False


Build = Callable[[Path, Engine, pytest.MonkeyPatch], Subject]


def timings(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    curve = {1: 0.25, 8: 0.5}
    value = ModelTimings(
        model="m",
        device="cpu",
        sources={},
        non_expert_s=curve,
        router_s=curve,
        layer_s={4: curve},
        expert_s={4: curve},
        pass_s=curve,
        policy_s=curve,
        submit_s=0.1,
        gate_lookahead_s=0.1,
        wake_s={4: 0.1},
        restart_s={4: 0.1},
        contention={4: 1.5},
        ready=ReadyTimings(curve, curve, {4: curve}, {8: curve}),
    )
    path = folder / "timings.json"
    return Subject(
        TIMINGS, path, lambda: save_timings(value, path), lambda: load_timings(path), value
    )


def crossovers(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    value = dict.fromkeys(map(str, crossover.CROSSOVER_TOKENS), 23)

    def read() -> Any:
        found = crossover.known_crossovers(folder, torch.device("cpu"))
        known = {str(bits): tokens for bits, tokens in found.items()}
        return None if found == crossover.CROSSOVER_TOKENS else known

    crossover.keep_crossovers(folder, value, torch.device("cpu"))
    path = next((folder / "kernels").iterdir())
    write = lambda: crossover.keep_crossovers(folder, value, torch.device("cpu"))  # noqa: E731
    return Subject(crossover.CROSSOVERS, path, write, read, value)


def self_test(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    patch.setattr(probe, "_test_in_child", lambda *_: ("it errs by 3", True))
    kernel: Any = SimpleNamespace(name="made")

    def read() -> Any:
        return probe._failure(kernel, [(8, 8)], 64, torch.float32, torch.device("cpu"), folder)

    read()
    path = next((folder / "kernels").iterdir())
    return Subject(probe.SELF_TEST, path, read, read, "it errs by 3", makes_again=True)


def sensitivities(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    value = [{4: 0.125, 2: 1.5}, {4: 0.25, 2: 9.0}]
    path = folder / "sensitivities.json"
    return Subject(
        allocate.SENSITIVITIES,
        path,
        lambda: allocate.save_sensitivities(path, value, tokens=64),
        lambda: allocate.load_sensitivities(path),
        value,
    )


def machine_profile(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    value = MachineProfile({"4096": 1e9, "65536": 2e9}, 8e9, None, {"16/1": 0.1})
    path = folder / "profile.json"
    return Subject(
        PROFILE, path, lambda: keep_profile(path, value), lambda: load_profile(path), value
    )


def seen_memory(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    value = SeenMemory(3, -9_000_000, 2_500_000)
    path = folder / "seen.json"
    return Subject(SEEN, path, lambda: keep_seen(path, value), lambda: load_seen(path), value)


def predictions(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    path = folder / "predictions.npz"
    logs = {"output_tps": np.arange(50.0), "tpot_ms": np.arange(50.0)[::-1].copy()}

    def read() -> Any:
        found = prepare._load(path, 50)
        return found and (
            found.replayed,
            {name: values.tolist() for name, values in found.logs.items()},
        )

    return Subject(
        prepare.PREDICTIONS,
        path,
        lambda: prepare._keep(path, Predictions(logs, 40, 0.0)),
        read,
        (40, {name: values.tolist() for name, values in logs.items()}),
    )


def trace(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    path = folder / "trace.npz"
    value = make_trace(np.arange(60).reshape(10, 3, 2) % 8)

    def read() -> Any:
        found = load_kept_trace(path)
        return found and (found.passes, found.experts.tolist(), found.facts)

    right = (value.passes, value.experts.tolist(), value.facts)
    return Subject(TRACE, path, lambda: value.save(path), read, right)


def learned_arrays(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    facts = make_facts()
    path = learned.learned_path(facts, folder)
    value = {"mlp.0.w1": np.arange(40.0).reshape(8, 5), "mlp.0.b1": np.ones(5)}

    def write() -> None:
        from engine.train.__main__ import add_arrays

        add_arrays(path, value)

    def read() -> Any:
        found = learned.load_learned(EngineConfig(), facts, folder)
        return {name: array.tolist() for name, array in found.items()} or None

    right = {name: array.tolist() for name, array in value.items()}
    return Subject(learned.LEARNED, path, write, read, right)


def reference(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    made: Any = SimpleNamespace(facts=SimpleNamespace(fingerprint="f", vocabulary=7))
    tokens = [1, 2, 3, 4]
    rows = torch.log_softmax(torch.arange(28.0).reshape(4, 7) % 5, dim=-1)

    def write() -> None:
        keeping = divergence.open_reader(made, tokens, folder, "decode", reference=True)
        assert keeping is not None
        keeping.read(0, rows)
        assert keeping.finish() == divergence.Divergence(0.0, 1.0)

    def read() -> Any:
        comparing = divergence.open_reader(made, tokens, folder, "decode", reference=False)
        if comparing is None:
            return None
        comparing.read(0, rows)
        return comparing.finish()

    path = divergence.reference_path(made, tokens, folder, "decode")
    return Subject(divergence.REFERENCE, path, write, read, divergence.Divergence(0.0, 1.0))


def gguf(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    content = b"GGUF" + bytes(range(256)) * 8
    fake = SimpleNamespace(fingerprint="f", tensors={})
    patch.setattr(gguf_file, "Checkpoint", lambda _: fake)
    patch.setattr(gguf_file, "_convert", lambda _, file, on_bytes: file.write_bytes(content))

    def read() -> Any:
        found = gguf_file.ensure_gguf(folder, folder, lambda *_: None)
        return found.read_bytes()[: len(content)]

    path = folder / "gguf" / "f" / "q4_0.gguf"
    return Subject(gguf_file.GGUF, path, read, read, content, makes_again=True)


def description(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    described, contents = folder / "commit", folder / "commit.json"

    def write() -> None:
        described.mkdir(exist_ok=True)
        (described / "config.json").write_text('{"layers": 3}')
        save_json(contents, headers.DESCRIPTION, headers._digests(described))

    def read() -> Any:
        return headers._is_described(described, contents) or None

    return Subject(headers.DESCRIPTION, contents, write, read, True)


def described_file(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    whole = description(folder, engine, patch)
    return replace(whole, path=folder / "commit" / "config.json")


def answers(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    path = folder / "answers.db"
    asked = [want([number]) for number in range(8)]
    right = [StepOutput(f"answer {n} " * 90, (), n, 1, "stop") for n in range(8)]

    def write() -> None:
        with contextlib.closing(ResponseCache(path, 99)) as cache:
            for one, answer in zip(asked, right, strict=True):
                cache.keep(one, answer.text, answer)

    def read() -> Any:
        with contextlib.closing(ResponseCache(path, 99)) as cache:
            return [cache.find(one) for one in asked]

    return Subject(ANSWERS, path, write, read, right)


def evaluation_journal(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    path = folder / "journal.jsonl"
    right = [[1.25, True], [2.5, False], "text"]

    def write() -> None:
        journal = Journal(path)
        for key, value in zip("abc", right, strict=True):
            if journal.get(key) is None:
                journal.add({key: value})

    def read() -> Any:
        journal = Journal(path)
        return [journal.get(key) for key in "abc"]

    return Subject(JOURNAL, path, write, read, right)


def pack_journal(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    record = _record(engine)
    folder = pack.pack_folder(engine.cache_folder, engine.model, record)

    def write() -> None:
        def stop(done: int, _: int) -> None:
            if done == 20:
                raise KeyboardInterrupt

        if (folder / "manifest.json").exists():
            for file in folder.iterdir():
                file.unlink()
        with contextlib.suppress(KeyboardInterrupt):
            pack.ensure_pack(engine.cache_folder, engine.model, record, progress=stop)

    path = folder / "journal.jsonl"
    right = _right_pack(engine, record)
    return Subject(
        pack.PACK_JOURNAL, path, write, lambda: _pack_bytes(engine, record), right, makes_again=True
    )


def manifest(folder: Path, engine: Engine, patch: pytest.MonkeyPatch) -> Subject:
    record = _record(engine)
    path = pack.pack_folder(engine.cache_folder, engine.model, record) / "manifest.json"
    read = lambda: _pack_bytes(engine, record)  # noqa: E731
    return Subject(pack.MANIFEST, path, read, read, _right_pack(engine, record), makes_again=True)


def _record(engine: Engine) -> Any:
    settings = {"precision.bits": 4, "kernel.name": "dequantize"}
    config, _ = resolve(EngineConfig().overlay(settings), engine.facts)
    return engine.record_format(config, NO_KERNELS)


def _pack_bytes(engine: Engine, record: Any) -> tuple[bytes, int]:
    found = pack.ensure_pack(engine.cache_folder, engine.model, record)
    return found.records.read_bytes(), len(found.checksums)


def _right_pack(engine: Engine, record: Any) -> tuple[bytes, int]:
    experts = [ExpertId(layer, index) for layer in range(3) for index in range(8)]
    made = (encode(engine.model.read_expert(one), record).numpy().tobytes() for one in experts)
    return b"".join(made), len(experts)


SUBJECTS: dict[str, Build] = {
    "timings": timings,
    "crossovers": crossovers,
    "self-test": self_test,
    "sensitivities": sensitivities,
    "machine profile": machine_profile,
    "seen memory": seen_memory,
    "predictions": predictions,
    "trace": trace,
    "learned": learned_arrays,
    "reference": reference,
    "gguf": gguf,
    "description": description,
    "described file": described_file,
    "answers": answers,
    "evaluation journal": evaluation_journal,
    "pack journal": pack_journal,
    "manifest": manifest,
}
LINES = {"evaluation journal", "pack journal"}


def rewrite_header(path: Path, kind: DerivedKind) -> None:
    """Give a file of lines a header of another version, with its checksum."""
    lines = LineFile(path, kind)
    values = lines.read()
    LineFile(path, replace(kind, version=98765)).rewrite(values)
