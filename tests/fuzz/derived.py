"""Targets: files that this program writes and reads back, such as packs, traces and profiles.

Each content is read twice: as it is, and under a right checksum, as a disk or a program may have
changed it before it was sealed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from engine.config.settings import EngineConfig, base_config
from engine.derived.file import DerivedKind, writing
from engine.derived.lines import LineFile
from engine.errors import EngineError
from engine.evaluate.journal import JOURNAL, Journal
from engine.experts.encoding.codec import RecordFormat
from engine.experts.tiers import pack
from engine.facts.emulated_machine import load_machine, predicted_timings
from engine.facts.timings import TIMINGS, ReadyTimings, load_timings, read_timings
from engine.files import short_digest
from engine.layout.record import Part, lay_out
from engine.policy import learned
from engine.precision import allocate
from engine.trace.trace import TRACE, Trace, load_kept_trace, load_trace
from tests.engine.memory.test_plan import make_facts
from tests.fakes.fake_engine import facts_of as fake_facts
from tests.fuzz.documents import read_json, write_bytes
from tests.fuzz.oracle import Arena, Run
from tests.fuzz.target import Shape, Target
from tuner.engine_client.machine_profile import PROFILE, load_profile
from tuner.replay.predict import facts_of, longest, replay_configs
from tuner.study import prepare
from tuner.study.memory import SEEN, load_seen

JSON = Shape(read_json, write_bytes)
Read = Callable[[Path], object]


def sealed(path: Path, kind: DerivedKind, content: bytes) -> None:
    """Write a content with its right checksum."""
    with writing(path, kind) as stream:
        stream.write(content)


def of_kind(kind: DerivedKind, name: str, read: Read) -> Callable[[Arena], Any]:
    """Opens a target that reads a file of the cache folder, with and without a checksum."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        path = place.cache / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _recorded()  # here, since it is written elsewhere

        def run(data: bytes) -> None:
            for with_seal in (False, True):
                if with_seal:
                    sealed(path, kind, data)
                else:
                    path.write_bytes(data)
                with (
                    contextlib.suppress(EngineError) if not with_seal else contextlib.nullcontext()
                ):
                    read(path)

        yield run

    return opened


def npz(data: bytes) -> bytes:
    """The arrays that an input describes, as a file: {"header": any, "arrays": {name: [dtype,
    shape, most]}}; values count up to most. Other inputs are the file."""
    try:
        found = json.loads(data)
        described = found["arrays"].items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return data
    arrays: dict[str, Any] = {}
    for name, one in described:
        with contextlib.suppress(ValueError, TypeError, OverflowError, SyntaxError, RuntimeWarning):
            dtype, shape, most = one
            count = math.prod(int(size) for size in shape)
            if 0 <= count <= 1 << 20:
                values = np.arange(count) % max(1, int(most))
                arrays[str(name).replace("/", "_")] = values.reshape(shape).astype(dtype)
    if "header" in found:
        arrays["header"] = np.array(json.dumps(found["header"]))
    stream = io.BytesIO()
    with contextlib.suppress(ValueError, TypeError):
        np.savez(stream, **{name: array for name, array in arrays.items() if name.isprintable()})
    return stream.getvalue()


def of_arrays(kind: DerivedKind, name: str, read: Read) -> Callable[[Arena], Any]:
    """Opens a target that reads arrays."""
    opened = of_kind(kind, name, read)

    @contextlib.contextmanager
    def made(place: Arena) -> Iterator[Run]:
        with opened(place) as run:
            yield lambda data: run(npz(data))

    return made


def _replayed(path: Path) -> None:
    """A trace that the user names, as far as `tune replay` goes with it."""
    load_kept_trace(path.with_name("none"))
    recorded = load_trace(path)
    facts = facts_of(recorded)
    timings = predicted_timings(load_machine("laptop_8gb"), facts)
    config = base_config("cpu", longest(recorded)).overlay({"cache.expert_bytes": "50%"})
    ahead = {"prefetch.predictor": "expert_map", "prefetch.depth": 1, "cache.eviction": "hobbit"}
    configs = {"plain": config, "ahead": config.overlay(ahead)}
    replay_configs(configs, facts, recorded, timings, history=recorded, warm_groups=1)


def _timings(path: Path) -> None:
    found = read_timings(path)
    load_timings(path)
    config = base_config("cpu", 64).overlay({"cache.expert_bytes": "50%"})
    replay_configs({"": config}, fake_facts("m"), _recorded(), found)


@cache
def _recorded() -> Trace:
    """A made-up trace of a few passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.npz"
        path.write_bytes(npz(TRACED))
        return load_trace(path)


def _lines(kind: DerivedKind, name: str, read: Read) -> Callable[[Arena], Any]:
    """Opens a target that reads lines: a JSON list of values, each with its right checksum; what is
    no list is the file itself."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        path = place.cache / name
        path.parent.mkdir(parents=True, exist_ok=True)

        def run(data: bytes) -> None:
            texts = [data]
            with contextlib.suppress(ValueError, RecursionError):
                tree = read_json(data)
                texts = [write_bytes(one) for one in tree] if isinstance(tree, list) else texts
            lines = [short_digest(text).encode() + b" " + text + b"\n" for text in texts]
            path.write_bytes(data if texts == [data] else b"".join(lines))
            read(path)

        yield run

    return opened


PARTS = (Part("up", (16, 32)),)
LAYERS, EXPERTS = 2, 3


@cache
def _pack_inputs() -> tuple[Any, RecordFormat]:
    """A model as far as opening a pack asks for one, and its records' format."""
    layers = [SimpleNamespace(index=n, count=EXPERTS) for n in range(LAYERS)]
    model: Any = SimpleNamespace(layers=layers, checkpoint=SimpleNamespace(fingerprint="f" * 32))
    return model, RecordFormat(PARTS, lay_out([("up", 1024)], 16, 0), torch.bfloat16, "plain")


def _manifest() -> bytes:
    model, record = _pack_inputs()
    identity = pack._identity(model, record)
    checksums = list(range(LAYERS * EXPERTS))
    return json.dumps({"identity": identity, "checksums": checksums, "created": 1.0}).encode()


def _open_pack(path: Path) -> None:
    model, record = _pack_inputs()
    (path.parent / "records.bin").write_bytes(bytes(LAYERS * EXPERTS * record.size_bytes))
    found = pack.open_pack(path.parent, model, record)
    assert found is None or len(found.checksums) == LAYERS * EXPERTS


def _resume(path: Path) -> None:
    model, record = _pack_inputs()
    partial = path.with_name("records.partial")
    partial.write_bytes(bytes(LAYERS * EXPERTS * record.size_bytes))
    identity = pack._identity(model, record)
    journal = LineFile(path, pack.PACK_JOURNAL)
    sums, layers = pack._resume(partial, journal, identity, model, record)
    assert len(sums) == layers * EXPERTS


def _pack_journal() -> bytes:
    model, record = _pack_inputs()
    crc = zlib.crc32(bytes(record.size_bytes))
    header = {"expertune": pack.PACK_JOURNAL.name, "version": pack.PACK_JOURNAL.version}
    layers = [{"layer": n, "checksums": [crc] * EXPERTS} for n in range(LAYERS)]
    return json.dumps([header, {"identity": pack._identity(model, record)}, *layers]).encode()


def _evaluation_journal() -> bytes:
    header = {"expertune": JOURNAL.name, "version": JOURNAL.version}
    return json.dumps([header, {"a": [1.25, True]}, {"b": "text", "c": None}]).encode()


def _learned(path: Path) -> None:
    named = EngineConfig().overlay({"prefetch.options.weights": str(path)})
    learned.load_learned(named, make_facts(), path.parent)


def _predictions(path: Path) -> None:
    prepare._load(path, 6)


TRACED = json.dumps(
    {
        "header": {
            "version": 1,
            "passes": [
                [group, phase, tokens, first]
                for group in range(2)
                for phase, tokens, first in (
                    ("prefill", [4], 6 * group),
                    ("decode", [1], 6 * group + 4),
                    ("decode", [1], 6 * group + 5),
                )
            ],
            "facts": {"workload": "w", "model_facts": fake_facts("m").to_json()},
        },
        "arrays": {
            "experts": ["int16", [12, 4, 2], 16],
            "weights": ["float16", [12, 4, 2], 2],
            "probabilities": ["float16", [12, 4, 16], 2],
            "embeddings": ["float16", [12, 8], 3],
        },
    }
).encode()


def _machine_timings() -> bytes:
    found = predicted_timings(load_machine("laptop_8gb"), fake_facts("m"))
    ready = ReadyTimings(found.non_expert_s, found.policy_s, found.expert_s, {8: found.pass_s})
    found = dataclasses.replace(found, ready=ready)
    return json.dumps(dataclasses.asdict(found)).encode()


LEARNED = {"arrays": {"mlp.0.w1": ["float32", [8, 5], 7], "mlp.0.b1": ["float32", [5], 2]}}
PREDICTED = {"arrays": {"replayed": ["int64", [], 9], "output_tps": ["float64", [6], 9]}}
PROFILED = {
    "read_bytes_per_s": {"4096": 1e9}, "memory_bytes_per_s": 8e9, "link_bytes_per_s": None,
    "kernel_ms": {"16/1": 0.1}, "crossover_tokens": {"4": 8}, "products": "native",
    "busy_read_bytes_per_s": {}, "read_slowdown": {}, "small_kernel_ms": {},
}  # fmt: skip
SENSITIVE = {"layers": [{"4": 0.125, "2": 1.5}, {"4": 0.25, "2": 9.0}], "tokens": 64}
SEEN_MEMORY = {"runs": 3, "least_bytes": -9_000_000, "most_bytes": 2_500_000}


def _sensitivities(path: Path) -> None:
    found = allocate.load_sensitivities(path)
    if found is not None:
        allocate.spread_by_sensitivity(found, 4.0, 8)


def _seen(path: Path) -> None:
    found = load_seen(path)
    if found is not None:
        found.correction_bytes(1 << 30)


def _profile(path: Path) -> None:
    load_profile(path)


def seeds(*values: Any) -> Callable[[], list[bytes]]:
    """Seeds of plain values."""
    return lambda: [json.dumps(value).encode() for value in values]


TARGETS = (
    Target("pack_index", of_kind(pack.MANIFEST, "packs/p/manifest.json", _open_pack),
           lambda: [_manifest()], JSON),
    Target("pack_journal", _lines(pack.PACK_JOURNAL, "packs/p/journal.jsonl", _resume),
           lambda: [_pack_journal()], JSON),
    Target("evaluation_journal", _lines(JOURNAL, "journal.jsonl", lambda path: Journal(path)),
           lambda: [_evaluation_journal()], JSON, cases=30),
    Target("trace", of_arrays(TRACE, "trace.npz", _replayed), lambda: [TRACED], JSON, cases=60),
    Target("learned", of_arrays(learned.LEARNED, "learned.npz", _learned), seeds(LEARNED), JSON,
           cases=40),
    Target("predictions", of_arrays(prepare.PREDICTIONS, "predictions.npz", _predictions),
           seeds(PREDICTED), JSON, cases=40),
    Target("timings", of_kind(TIMINGS, "timings.json", _timings), lambda: [_machine_timings()],
           JSON, cases=40),
    Target("profile", of_kind(PROFILE, "profile.json", _profile), seeds(PROFILED), JSON, cases=40),
    Target("sensitivities", of_kind(allocate.SENSITIVITIES, "sensitivities.json", _sensitivities),
           seeds(SENSITIVE), JSON, cases=40),
    Target("seen_memory", of_kind(SEEN, "seen.json", _seen), seeds(SEEN_MEMORY), JSON, cases=30),
)  # fmt: skip
