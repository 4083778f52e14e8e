"""Memory for layer-wise scoring: how many tokens of text can pass through the layers together."""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.model import ModelFacts
from engine.memory.kv import DTYPE_BYTES
from engine.memory.plan import record_bytes, resolve
from engine.types import format_bytes

LAYER_WISE_SLOTS = 8  # a record is read while others are multiplied
LAYER_WISE_BYTES = 256_000_000  # for hidden states where no budget is given


def layer_wise(config: EngineConfig, facts: ModelFacts, longest: int) -> tuple[EngineConfig, int]:
    """For a pass layer by layer over texts of at most `longest` tokens: its resolved config, whose
    prefill.chunk_tokens is what may go through the non-expert weights at once, and how many tokens
    can be under way together.

    No keys and values are kept and few slots are enough, so that the budget goes to hidden states.
    Raises InfeasibleError where the longest text does not fit, and where kv.bits is below 16 or
    kv.keep_fraction below 1: what they lose is only seen by what passes through the kv_cache.
    """
    for path, value, exact in (
        ("kv.bits", config.kv.bits, 16),
        ("kv.keep_fraction", config.kv.keep_fraction, 1),
    ):
        if value != exact:
            raise InfeasibleError(
                f"with {path} = {value} texts have to pass through the kv_cache, which a pass "
                f"layer by layer does not keep: set {path} to {exact} for it"
            )
    together = max(2, longest, config.prefill.chunk_tokens)
    wanted = config.overlay(
        {
            "cache.expert_bytes": LAYER_WISE_SLOTS * record_bytes(config, facts),
            "cache.scope": "shared",
            "cache.eviction": "lru",
            "prefetch.predictor": "none",
            "prefetch.depth": 0,
            "batch.count": 1,
            "batch.size": 1,
            "kv.max_tokens": together,
            "kv.placement": "device",
            "kv.elastic": False,
            "serve.prefix_cache_tokens": 0,
            "prefill.chunk_tokens": together,
        }
    )
    resolved, plan = resolve(wanted, facts)
    width = DTYPE_BYTES[config.compute.dtype]
    token_bytes = (4 * width + 4) * facts.hidden_size  # states on both sides of a layer, and sums
    token_bytes += (2 * width + 56) * facts.experts_per_token  # choices, sorted by expert
    budget = config.budget.vram_bytes
    capacity = budget - plan.total_bytes + plan.kv_bytes if budget else LAYER_WISE_BYTES
    tokens = int(capacity // (token_bytes * 1.15))
    if tokens < together:
        missing = int((together - tokens) * token_bytes * 1.15)
        raise InfeasibleError(
            f"hidden states of a text of {longest} tokens do not fit beside the model: give "
            f"{format_bytes(missing)} more, or shorter texts",
            budget + missing,
        )
    return resolved, tokens
