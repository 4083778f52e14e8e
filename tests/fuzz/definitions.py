"""Targets: what people write: studies, workloads, prompts, deployments, sizes, durations."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from engine.config.settings import EngineConfig
from engine.facts.emulated_machine import load_machine, machine_folder
from engine.types import parse_size_bytes
from tests.fakes.study import DEFINITION, WORKLOAD
from tests.fuzz.documents import Pairs, read_json, read_yaml, write_bytes
from tests.fuzz.mutations import SCALARS, YAML_SCALARS
from tests.fuzz.oracle import Arena, Run
from tests.fuzz.target import CORPUS, Shape, Target
from tuner.cli.options import read_budgets, read_duration, read_settings, read_size
from tuner.definition.duration import parse_duration_s
from tuner.definition.prompts import load_prompts
from tuner.definition.strict_yaml import parse_yaml
from tuner.definition.study import definition_json, load_definition
from tuner.definition.workload import load_workload
from tuner.deployment.document import dump_deployment, load_deployment, parse_deployment
from tuner.folders import studies_folder

YAML = Shape(read_yaml, write_bytes, YAML_SCALARS)
JSON = Shape(read_json, write_bytes)


def of_file(name: str, read: Callable[[Path], object]) -> Callable[[Arena], Any]:
    """Opens a target that reads a file of this name, which must stay as it is."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        path = place.given / name

        def run(data: bytes) -> None:
            path.write_bytes(data)
            try:
                read(path)
            finally:
                assert path.read_bytes() == data, "a file that a user names stays as it is"

        yield run

    return opened


def of_bytes(read: Callable[[bytes], object]) -> Callable[[Arena], Any]:
    """Opens a target that takes the bytes themselves."""

    @contextlib.contextmanager
    def opened(place: Arena) -> Iterator[Run]:
        yield lambda data: read(data) and None

    return opened


def of_text(*readers: Callable[[str], object], allowed: type[Exception] = ValueError) -> Any:
    """Opens a target that takes a text, as typed; each of the readers reads it."""

    def read(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        for reader in readers:
            with contextlib.suppress(*((allowed,) if reader is not readers[-1] else ())):
                reader(text)

    return of_bytes(read)


def _study(path: Path) -> None:
    definition = load_definition(path, {"vram": None})
    definition_json(definition)
    definition.search_digest()
    assert definition.output_path.name
    with contextlib.suppress(OSError):  # a path that no system has
        definition.load_workload()


def _deployment(path: Path) -> None:
    deployment = load_deployment(path)
    deployment.config()
    deployment.workload.to_workload()
    assert parse_deployment(dump_deployment(deployment)) == deployment


def _settings(data: bytes) -> None:
    found = parse_yaml(data.decode("utf-8", "surrogateescape"), "the settings")
    if isinstance(found, dict):
        EngineConfig().overlay({str(key): value for key, value in found.items()})
        EngineConfig.from_dict({str(key): value for key, value in found.items()})


def _prompts(place: Path) -> None:
    """The first word of the first line is the file's suffix."""
    suffix, _, rest = place.read_bytes().partition(b"\n")
    path = place.with_name("prompts." + re.sub("[^a-z]", "", suffix.decode("ascii", "ignore")[:8]))
    path.write_bytes(rest)
    try:
        load_prompts(path)
    finally:
        path.unlink()


@cache
def exported() -> bytes:
    """A deployment that a study with the fake engine wrote."""
    return (CORPUS / "deployment" / "exported.yaml").read_bytes()


def _texts(*folders: str) -> list[bytes]:
    files = (path for name in folders for path in sorted((studies_folder() / name).glob("*.yaml")))
    return [path.read_bytes() for path in files]


STUDY = DEFINITION.format(budget_bytes=60_000_000).replace("workload.yaml", "chat")
FULL_STUDY = """\
name: all
model: ./folder
device: auto
budget: {vram_bytes: 8GB, ram_bytes: 16GB, disk_bytes: 0, curve: [4GB, 6GB]}
prompts: prompts.jsonl
chat: false
prompt_tokens: 64
output_tokens: 32
sequences: 4
engine: {kv.bits: 8, precision.options.table: ["4", "8"], cache.expert_bytes: 25%}
space: {precision.bits: [16, 4], policy: [own, lru], prefetch.depth: [0, 1]}
objectives: [output_tps, quality]
constraints: {min_quality: 0.9, max_ttft_ms: 100.0, max_tpot_ms: 50}
quality: {tasks: [a_task, ./own.yaml], limit: 5, num_fewshot: 1, apply_chat_template: true}
timeout_s: 1h30m
sampler: tpe
seed: 3
repeats: {min: 2, max: 3, half_width: 0.1}
stall_s: 90s
output: out.yaml
"""
SETTINGS = (
    b"{cache.expert_bytes: 25%, prefetch.depth: 1, precision.bits: 4, kv.keep_fraction: 0.5, \
placement.host_fraction: auto, transfer.chunk_bytes: 2MB, kv.elastic: on, host.bytes: 50%, \
precision.options.table: [g, '4'], batch.count: 3, io.direct: auto, cache.eviction: lru}"
)
NESTED = b"{cache: {expert_bytes: 1GB, options: {a: 1}}, precision: {bits: prequantized}}"
PROMPTS = (
    b'jsonl\n{"prompt": "a", "continuation": "b"}\n{"prompt": "c"}\n',
    b'json\n[{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]',
    b'json\n{"rows": [{"row": {"messages": [{"role": "user", "content": [{"text": "a"}]}]}}]}',
    b'json\n[{"instruction": "i", "input": "n", "output": "o"}, {"user": "q", "assistant": "a"}]',
    b'csv\nprompt,continuation\n"a, b",c\n"d""e",f\n',
    b"tsv\nid\tprompt\n1\ta b\n",
    b"txt\none\ntwo\n",
)
SIZES = ("8GB", "8 GiB", "512MB", "1.5 gigabytes", "100000", "4GB,6GB", ".5Go", "8_000_000")
DURATIONS = ("25m", "1h30m", "1:30:00", "90 s", "5", "2 days, 3 hours", "1.5h", "100ms", "0")
PAIRS = ("cache.expert_bytes=25%", "precision.bits=4,8", "batch.count=2", "kv.elastic=on")


def words(known: tuple[str, ...]) -> Callable[[], st.SearchStrategy[bytes]]:
    """Texts made of pieces of right ones."""
    odd = ("9" * 30, "9" * 400, " " * 9000, "1" * 20_000, "٣", "¹", "e400", "inf", "nan", "\x00")
    pieces = (*known, *(char for word in known for char in word), *odd, *"-+:_", "0x1")
    return lambda: st.lists(st.sampled_from(pieces), max_size=6).map(lambda p: "".join(p).encode())


def own_settings() -> st.SearchStrategy[bytes]:
    """Every path with any value."""
    paths = [path for path in EngineConfig().flat() if not path.endswith(".options")]
    values = st.sampled_from((*SCALARS, *YAML_SCALARS)) | st.integers() | st.floats()
    return st.dictionaries(st.sampled_from(paths), values, max_size=3).map(
        lambda found: write_bytes(Pairs(map(list, found.items())))
    )


def _sizes(text: str) -> None:
    for reader in (partial(read_size, "--vram"), read_budgets):
        reader(text)


TARGETS = (
    Target(
        "study", of_file("study.yaml", _study),
        lambda: [STUDY.encode(), FULL_STUDY.encode()], YAML, cases=120,
    ),
    Target("deployment", of_file("file.yaml", _deployment), lambda: [exported()], YAML, cases=40),
    Target(
        "workload", of_file("work.yaml", load_workload),
        lambda: [WORKLOAD.encode(), *_texts("workloads")], YAML, allowed=(OSError,),
        cases=40,
    ),
    Target("prompts", of_file("prompts", _prompts), lambda: PROMPTS),
    Target(
        "machine", of_file("machine.yaml", lambda path: load_machine(str(path))),
        lambda: [path.read_bytes() for path in sorted(machine_folder().glob("*.yaml"))], YAML,
    ),
    Target(
        "size", of_text(parse_size_bytes, _sizes),
        lambda: [text.encode() for text in SIZES], own=words(SIZES), cases=150,
    ),
    Target(
        "duration", of_text(parse_duration_s, partial(read_duration, "--timeout")),
        lambda: [text.encode() for text in DURATIONS], own=words(DURATIONS), cases=150,
    ),
    Target(
        "settings", of_bytes(_settings), lambda: [SETTINGS, NESTED], YAML, own=own_settings,
        cases=150,
    ),
    Target(
        "set_option", of_text(lambda text: read_settings([text])),
        lambda: [text.encode() for text in PAIRS], own=words(PAIRS),
    ),
)  # fmt: skip
