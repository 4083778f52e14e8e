"""Compares the engine with plain transformers on a few tokens, in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.memory_limit import usable_memory
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from engine.types import format_bytes


@dataclass(frozen=True)
class Parity:
    """The largest difference of any logit, and the largest logit of plain transformers' run."""

    max_abs_diff: float
    max_abs_logit: float


def check_parity(engine: Engine, tokens: int) -> Parity:
    """Run `tokens` fixed pseudo-random tokens through both. Leaves the engine released.

    Raises InfeasibleError if plain transformers would not fit this machine's memory.
    """
    facts = engine.facts
    needed = 2 * (facts.non_expert_bytes + facts.expert_bytes["16"])
    available = usable_memory()[1]
    if needed * 1.2 > available:
        raise InfeasibleError(
            f"comparing with plain transformers takes {format_bytes(needed)} of memory, "
            f"{format_bytes(available)} are available: use --no-parity",
            int(needed * 1.2),
        )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, facts.vocabulary, (1, tokens), generator=generator)
    engine.configure(
        EngineConfig().overlay(
            {
                "compute.dtype": "float32",
                "precision.bits": "prequantized",
                "cache.expert_bytes": "50%",
                "kv.max_tokens": max(2, tokens),
                "prefill.chunk_tokens": tokens,
            }
        )
    )
    own = engine.prefill([MicroBatch(ids, keep=0)])[0].cpu()
    engine.release()
    reference = AutoModelForCausalLM.from_pretrained(facts.path, dtype=torch.float32).eval()
    with torch.inference_mode():
        plain = reference(ids).logits
    return Parity(float((own - plain).abs().max()), float(plain.abs().max()))
