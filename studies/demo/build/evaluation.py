"""Figures of the demo model on its held-out text: bits per byte and the locality of its routes.

In: a model and the work folder of `train_demo_model.py`. Windows are scored without what stands
before them, so that the bits include each window's cold start.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from studies.demo.build.routing import RouterLogits, lru_hit_rate

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
RESIDENT_EXPERTS = 16


@dataclass(frozen=True)
class Evaluation:
    """Figures of the held-out text."""

    bits_per_byte: float
    hit_rate: float
    hit_rate_by_layer: tuple[float, ...]
    tokens: int


@torch.no_grad()
def evaluate_model(
    model: Qwen3MoeForCausalLM, work: Path, length: int, batches: int, routed_texts: int
) -> Evaluation:
    """Measure bits per byte on windows of the held-out stream and LRU hit rates of some of them."""
    stream = torch.from_numpy(np.load(work / "heldout.npy").astype(np.int64))
    windows = stream[: len(stream) // length * length].view(-1, length)
    if batches * 8 < len(windows):
        windows = windows[:: len(windows) // (batches * 8)][: batches * 8]
    sizes = _token_bytes(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    per_token = model.config.num_experts_per_tok
    nats, text_bytes = 0.0, 0
    routes: list[list[Tensor]] = []
    for ids in windows.split(8):  # type: ignore[no-untyped-call]
        with RouterLogits(model) as logits, torch.autocast("cpu", torch.bfloat16):
            scores = model(ids, use_cache=False).logits[:, :-1]
        targets = ids[:, 1:]
        nats += float(
            nn.functional.cross_entropy(
                scores.flatten(0, 1).float(), targets.flatten(), reduction="sum"
            )
        )
        text_bytes += int(sizes[targets].sum())
        if len(routes) < routed_texts:
            chosen = [
                layer.topk(per_token, dim=-1).indices.view(len(ids), length, per_token)
                for layer in logits
            ]  # each [B, L, K]
            routes += [[layer[i] for layer in chosen] for i in range(len(ids))]
    by_layer = tuple(
        float(np.mean([lru_hit_rate(text[layer], RESIDENT_EXPERTS) for text in routes]))
        for layer in range(len(routes[0]))
    )
    bits = nats / math.log(2) / text_bytes
    return Evaluation(bits, float(np.mean(by_layer)), by_layer, windows.numel())


def _token_bytes(fast: PreTrainedTokenizerFast) -> Tensor:
    """Count the bytes of text that each token stands for; special tokens count none."""
    tokens = fast.convert_ids_to_tokens(range(len(fast)))
    return torch.tensor([0 if t in (BOS, EOS, PAD) else len(t) for t in tokens])
