"""What the tuner and an engine worker say to each other: JSON lines over an inherited socket.

Tuner to worker: {"schema": 1, "id": n, "op": NAME, ...arguments}
Worker to tuner, in any order:
  {"schema": 1, "event": "heartbeat", "rss_bytes": n}                    once a second
  {"schema": 1, "id": n, "event": "progress", "stage": s, "done": x, "total": y, ...}
  {"schema": 1, "id": n, "event": "token", "text": s}                    generate only
  {"schema": 1, "id": n, "event": "ready", "host": s, "port": n}         serve: requests are taken
  {"schema": 1, "id": n, "event": "telemetry", ...}                      serve: a window of time
  {"schema": 1, "id": n, "ok": true, "result": {...}}                    the answer
  {"schema": 1, "id": n, "ok": false, "error": {"class": FailureClass, "type": NAME,
       "message": s, "exit_code": n, "smallest_bytes": n | null}}        the answer, failed

One request is answered before the next is read. The worker ends when the socket closes (its
parent died) or on `close`. Values only; the engine behind it is imported by engine.worker.

| op | arguments | result |
| --- | --- | --- |
| describe | model, device, trust_remote_code, revision | facts (ModelFacts), device |
| open | model, device, trust_remote_code, revision | facts (ModelFacts), hardware, runtime_bytes |
| configure | config (nested, `auto` and shares allowed) | config (resolved), memory (MemoryPlan) |
| measure | workload (Workload), repeats, warm_up, seed | Report |
| evaluate | tasks (names or YAML paths), reference, the fields of TaskOptions | QualityReport |
| unknown_tasks | tasks (names or YAML paths) | names: those that lm-eval does not know |
| discard_journal | (none) | (empty) |
| generate | prompt, chat, max_tokens, temperature, top_p, seed | text, tokens, metrics |
| pack | bits, group_size | path, bytes, records |
| profile | (none) | MachineProfile |
| divergence | text, tokens, reference | kld_mean, top1_agreement, tokens |
| trace | path, workload, repeats, seed, gate_inputs | path, bytes, passes, tokens |
| calibrate | config, workload, bits | ModelTimings |
| serve | name, host, port, queue, telemetry_s, drain_s | totals, after SIGTERM and draining |
| parity | tokens | parity_max_abs_diff, parity_max_abs_logit |
| close | (none) | (empty) |

`python -m engine.serve` knows open, configure, measure, serve and close, the worker all but serve.
`describe` reads a hub id's description and headers, `open` fetches its weights too.
`revision` of both, for a hub id: left out, the latest.
`reference` of evaluate: keep the logits as the 16-bit reference for later divergences.
`discard_journal`: the last evaluation is stored, so what would let it go on is dropped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from engine.errors import ProtocolError
from engine.layout.dense import DenseMatrix
from engine.layout.prequantized import PublishedFormat
from engine.layout.record import (
    Part,
    parts_from_json,
    parts_to_json,
)
from engine.types import Bits

SCHEMA = 1
# Other engines behind the same messages: `python -m engine.peers --peer NAME`.
PeerName = Literal[
    "transformers resident", "accelerate disk", "llama.cpp mmap", "llama.cpp resident"
]
PEERS: tuple[PeerName, ...] = get_args(PeerName)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model from its config and safetensors headers, without its weights.

    revision: the commit of a hub id, `local` for a folder;
    dense_bytes: all that is not an expert, at 16 bits; parts: the parameters of one expert;
    record_bytes: padded bytes of one record, by bits (keys as text); expert_bytes: all experts
    together, by bits and, where experts are published quantized, as `native`;
    kv_bytes_per_token: all layers at 16 bits, one sequence; predictors: usable on this model;
    published: the format of quantized experts; dense_matrices: shapes of the dense part that
    dense_bits quantizes; embedding_bytes: at 16 bits, 0 where the head is the same tensor;
    kv_plain_layers: those whose keys and values kv.bits, kv.keep_ratio and kv.placement reach;
    pieces_16: in how many pieces a 16-bit record lies in the checkpoint, each a read of its own.
    """

    id: str
    path: str
    revision: str
    fingerprint: str
    family: str
    layers: int
    moe_layers: int
    experts: int
    experts_per_token: int
    hidden_size: int
    vocabulary: int
    max_positions: int
    dense_bytes: int
    parts: tuple[Part, ...]
    record_bytes: dict[str, int]
    expert_bytes: dict[str, int]
    kv_bytes_per_token: int
    predictors: tuple[str, ...]
    has_tokenizer: bool
    in_place_16: bool
    published: PublishedFormat | None = None
    dense_matrices: tuple[DenseMatrix, ...] = ()
    embedding_bytes: int = 0
    kv_plain_layers: int = 0
    pieces_16: int = 1

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        published = self.published.to_json() if self.published else None
        return {**asdict(self), "parts": parts_to_json(self.parts), "published": published}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModelFacts:
        """Inverse of to_json."""
        published = data.get("published")
        return cls(
            **{
                **data,
                "parts": parts_from_json(data["parts"]),
                "predictors": tuple(data["predictors"]),
                "dense_matrices": tuple(DenseMatrix(*m) for m in data.get("dense_matrices", ())),
                "published": PublishedFormat(**published) if published else None,
            }
        )


@dataclass(frozen=True)
class MemoryPlan:
    """The memory equation of one configuration, in bytes; the sum is what the budget bounds.

    slots: of all sizes; slots_by_bits: where records of different precisions are kept apart;
    lent_slots: more of them in the room of keys and values while that is free (kv.elastic).
    """

    slots: int
    slots_bytes: int
    dense_bytes: int
    kv_bytes: int
    workspace_bytes: int
    staging_bytes: int
    slots_by_bits: dict[Bits, int] = field(default_factory=dict)
    lent_slots: int = 0

    @property
    def total_bytes(self) -> int:
        """Everything on the device."""
        return (
            self.slots_bytes
            + self.dense_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.staging_bytes
        )

    def resident_share(self, experts: int) -> float:
        """Share of so many experts that slots can hold (an expert may lie in two pools)."""
        return min(1.0, self.slots / experts)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, with the total."""
        return {**asdict(self), "total_bytes": self.total_bytes}


@dataclass(frozen=True)
class Workload:
    """Real text to run: see studies/workloads/.

    prompts: raw texts or (chat) user messages; continuations: the texts that follow them, for
    teacher forcing (empty: seeded sampling). sequences: how many are run in one repeat.
    """

    name: str
    prompts: tuple[str, ...]
    continuations: tuple[str, ...] = ()
    chat: bool = False
    prompt_tokens: int = 64
    output_tokens: int = 32
    sequences: int = 4

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """Inverse of to_json."""
        return cls(
            **{
                **data,
                "prompts": tuple(data["prompts"]),
                "continuations": tuple(data["continuations"]),
            }
        )


@dataclass(frozen=True)
class TaskOptions:
    """How lm-eval runs its tasks; the names are lm-eval's own.

    limit: items of each task, None: all; num_fewshot: examples before each item, None: as the task
    says (one that says 0 stays at 0); apply_chat_template: the model's own; fewshot_as_multiturn:
    with a template, each example is a turn. seed: also of which examples are chosen.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = True
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """The arguments of `evaluate`."""
        return asdict(self)


@dataclass(frozen=True)
class MachineProfile:
    """Measured speeds of this machine.

    read_bytes_per_s: by record size (bytes as text) at the given queue depth; memory_bytes_per_s:
    one large copy; kernel_ms: of one product with a 1024 x 1024 matrix, by `bits/tokens`;
    small_kernel_ms: with a 128 x 128 one, which is what a product costs beside its weights;
    crossover_tokens: up to how many tokens the packed 4-bit product wins over dequantizing, None
    where there is none.
    By chunk size, where slots lie in host memory: busy_read_bytes_per_s, of the engine's reads
    while a product runs; read_slowdown, how many times as long that product takes meanwhile.
    """

    read_bytes_per_s: dict[str, float]
    memory_bytes_per_s: float
    link_bytes_per_s: float | None
    kernel_ms: dict[str, float] = field(default_factory=dict)
    crossover_tokens: int | None = None
    busy_read_bytes_per_s: dict[str, float] = field(default_factory=dict)
    read_slowdown: dict[str, float] = field(default_factory=dict)
    small_kernel_ms: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)


def encode(message: dict[str, Any]) -> bytes:
    """One line, with the schema number."""
    return (json.dumps({"schema": SCHEMA, **message}) + "\n").encode()


def decode(line: bytes | str) -> dict[str, Any]:
    """Read one line; ProtocolError if it is not a message of this schema."""
    try:
        message = json.loads(line)
    except ValueError:
        raise ProtocolError(f"not a protocol message: {line[:120]!r}") from None
    if not isinstance(message, dict) or message.get("schema") != SCHEMA:
        found = message.get("schema") if isinstance(message, dict) else type(message).__name__
        raise ProtocolError(f"protocol schema {found}, this program speaks {SCHEMA}")
    return message
