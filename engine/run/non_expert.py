"""The settings that decide how non-expert weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.config.settings import EngineConfig
from engine.experts.kernels.crossover import Crossovers
from engine.model.loader import LoadedModel
from engine.model.non_expert import HostEmbedding, can_keep_embeddings_on_host
from engine.types import ActivationBits, Bits, EmbeddingsName, KernelName


@dataclass(frozen=True)
class NonExpertSettings:
    """Settings that decide how the non-expert weights are loaded; group and
    activation_bits only below 16 bits."""

    dtype: str
    bits: Bits = 16
    group: int = 0
    kernel: KernelName = "auto"
    crossover: int = 0
    embeddings: EmbeddingsName = "device"
    activation_bits: ActivationBits = 16

    @classmethod
    def of(cls, config: EngineConfig, on_cpu: bool) -> NonExpertSettings:
        """The settings of a resolved config. on_cpu: what is multiplied may be rounded."""
        precision, dtype = config.precision, config.compute.dtype
        embeddings = config.placement.embeddings
        if precision.non_expert_bits == 16:
            return cls(dtype, kernel=config.kernel.name, embeddings=embeddings)
        return cls(
            dtype,
            precision.non_expert_bits,
            precision.group_size,
            config.kernel.name,
            config.kernel.crossover_tokens,
            embeddings,
            precision.activation_bits if on_cpu else 16,
        )

    def crossover_of(self, bits: Bits, measured: Crossovers) -> int:
        """Up to how many tokens a matrix of so many bits is multiplied by a kernel."""
        return self.crossover or measured[bits]


def place_weights(loaded: LoadedModel, embeddings: EmbeddingsName, device: torch.device) -> None:
    """Move the non-expert weights to the device, but for embeddings that stay on the host.

    What is there already stays there. Raises torch.OutOfMemoryError.
    """
    model = loaded.model
    table = model.get_input_embeddings()
    keeps = embeddings == "host" and can_keep_embeddings_on_host(model)
    if keeps and not isinstance(table, HostEmbedding):
        model.set_input_embeddings(HostEmbedding(table))
    model.to(device)


def sixteen_dtype(model: LoadedModel) -> torch.dtype:
    """dtype of 16-bit records: fp16 if all experts are stored in it, else bf16."""
    dtypes = {entry.dtype for entry in model.expert_entries()}
    return torch.float16 if dtypes == {torch.float16} else torch.bfloat16
