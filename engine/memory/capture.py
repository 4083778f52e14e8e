"""The memory equation's part of captured decoding (compute.capture).

What the driver holds for the captured work itself is in no equation: device.correction_bytes learns
it. Pure arithmetic.
"""

from __future__ import annotations

from engine.config.settings import EngineConfig
from engine.facts.model import ModelFacts

_BLAS_BYTES = 32 << 20  # cuBLAS's workspace of the stream of captures: torch's default on sm_90
_SEGMENT_BYTES = 22 << 20  # torch's allocator takes 2 MiB for small and 20 MiB for large tensors
_NUMBER_BYTES = 4  # of an activation, at most


def capture_bytes(config: EngineConfig, facts: ModelFacts, scratch_bytes: int) -> int:
    """Bytes that captured parts keep on an accelerator, 0 if compute.capture is off.

    scratch_bytes: of the largest weight outside the experts that is dequantized at once. Every
    micro-batch has a pool of its own, and keeps the inputs and outputs of its parts: hidden states
    before and after the experts, the router's scores, the logits.
    """
    if not config.compute.capture:
        return 0
    layer = 4 * facts.hidden_size + 2 * facts.experts
    kept = _NUMBER_BYTES * (facts.moe_layers * layer + 2 * facts.vocabulary)
    pool = _SEGMENT_BYTES + scratch_bytes + config.batch.size * kept
    return _BLAS_BYTES + config.batch.count * pool
