"""The protocol between the tuner and an engine worker: JSON lines over an inherited socket.

Tuner to worker: {"schema": 1, "id": n, "op": NAME, ...arguments}
Worker to tuner, in any order:
  {"schema": 1, "event": "heartbeat", "rss_bytes": n}                    once a second
  {"schema": 1, "id": n, "event": "progress", "stage": s, "done": x, "total": y, ...}
  {"schema": 1, "id": n, "event": "token", "text": s}                    generate only
  {"schema": 1, "id": n, "event": "ready", "host": s, "port": n}         serve: accepts requests
  {"schema": 1, "id": n, "event": "telemetry", ...}                      serve: a time window
  {"schema": 1, "id": n, "ok": true, "result": {...}}                    the answer
  {"schema": 1, "id": n, "ok": false, "error": {"class": FailureClass, "type": NAME,
       "message": s, "exit_code": n, "smallest_bytes": n | null,
       "ends_worker": b}}                                              the answer, failed

The worker answers one request before it reads the next. It ends when the socket closes (its parent
died), on `close`, and after an answer with `ends_worker`: its accelerator computes no more. This
module holds values only; engine.worker imports the engine.

Operations, as `op: arguments -> result`:
  device: device -> name (of what it opens), card (its UUID, None for the CPU), torch, built_for
  describe: model, device, trust_remote_code, revision -> facts (ModelFacts), device, card
  open: model, device, trust_remote_code, revision
      -> facts (ModelFacts), hardware, runtime_bytes, device, card, context_bytes (None if unknown),
         decodes_together
  configure: config (nested, `auto` and percentages allowed)
      -> config (resolved), memory (MemoryPlan)
  measure: workload (Workload), repeats, warm_up, seed -> Report
  evaluate: tasks (names or YAML paths), reference, the fields of TaskOptions -> QualityReport
  check_tasks: model, device, trust_remote_code, revision, tasks, the fields of TaskOptions
      -> needs (TaskNeed of each task); needs no open model
  discard_journal: (none) -> (empty)
  generate: prompt, chat, max_tokens, temperature, top_p, seed -> text, tokens, metrics
  pack: bits, group_size -> path, bytes, records
  profile: device (left out: auto; the opened one if a model is open) -> MachineProfile
  divergence: text, tokens, reference -> kld_mean, top1_agreement, tokens
  trace: path, workload, repeats, seed, gate_inputs -> path, bytes, passes, tokens
  calibrate: config, workload, bits -> ModelTimings
  sensitivities: config, workload, bits, tokens -> path, layers, tokens
  serve: name, host, port, queue, telemetry_s, drain_s -> totals, after SIGTERM and draining
  parity: tokens -> parity_max_abs_diff, parity_max_abs_logit
  close: (none) -> (empty)

`python -m engine.serve` supports open, configure, measure, serve and close, the worker all but
serve.
`describe` reads a hub id's description and headers, `open` fetches its weights too.
`revision` of both, for a hub id: if left out, the latest.
`reference` of evaluate: keep the logits as the 16-bit reference for later divergences.
`discard_journal`: the last evaluation is stored, so its resume journal is dropped.
"""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from engine.errors import ProtocolError

SCHEMA = 1
# Baseline engines that speak the same protocol: `python -m engine.baselines --baseline NAME`.
BaselineName = Literal[
    "transformers resident", "accelerate disk", "llama.cpp mmap", "llama.cpp resident"
]
BASELINES: tuple[BaselineName, ...] = get_args(BaselineName)


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message as one line, with the schema number."""
    return (json.dumps({"schema": SCHEMA, **message}) + "\n").encode()


def decode(line: bytes | str) -> dict[str, Any]:
    """Decode one line. Raises ProtocolError if it is not a message of this schema."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise ProtocolError(f"not a protocol message: {line[:120]!r}") from None
    if not isinstance(message, dict) or message.get("schema") != SCHEMA:
        found = message.get("schema") if isinstance(message, dict) else type(message).__name__
        raise ProtocolError(f"protocol schema {found}, this program speaks {SCHEMA}")
    return message
