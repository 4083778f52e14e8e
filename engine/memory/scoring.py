"""Memory for layer-wise scoring: how many tokens of text can pass through the layers together."""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.model import ModelFacts
from engine.memory.kv import DTYPE_BYTES
from engine.memory.plan import resolve
from engine.memory.records import record_bytes
from engine.types import format_bytes

LAYER_WISE_SLOTS = 8  # a record is read while others are multiplied
LAYER_WISE_BYTES = 256_000_000  # for hidden states if no budget is given


def layer_wise(config: EngineConfig, facts: ModelFacts, longest: int) -> tuple[EngineConfig, int]:
    """The resolved config of a layer-wise pass and its capacity in tokens.

    longest: the most tokens of a text. The config's prefill.chunk_tokens is the number of tokens
    that may pass the non-expert weights at once; the capacity is the number of tokens in flight. No
    keys and values are kept and few slots are enough, so that the budget goes to hidden states.
    Raises InfeasibleError if the longest text does not fit, and if kv.bits is below 16 or
    kv.keep_fraction below 1: only passes through the kv_cache show what those settings lose.
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
