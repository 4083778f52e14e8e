"""The ways in which a loaded model decodes a token faster than by its own forward for each
micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from engine.experts.kernels.crossover import Crossovers
from engine.experts.kernels.gemm import widen_linears
from engine.model.loader import LoadedModel
from engine.native import library
from engine.run.joined_pass import JoinedPass
from engine.run.micro_batch import DecodePass
from engine.run.native_pass import NativePass, use_native
from engine.run.non_expert import NonExpertSettings


@dataclass(frozen=True)
class DecodePasses:
    """native: on the CPU, for models of its structure; joined: for several micro-batches of others,
    and on other devices. native_tokens: up to so many all products are native; tried: whether a
    model was loaded."""

    native: NativePass | None = None
    joined: JoinedPass | None = None
    native_tokens: int = 0
    tried: bool = False

    @classmethod
    def on_cpu(
        cls, model: LoadedModel, settings: NonExpertSettings, crossovers: Crossovers
    ) -> DecodePasses:
        """Those that give the bits of the model's own forward. Makes the model, loaded with these
        settings, use the native library."""
        native, joined, few = None, None, 0
        if library.is_available() and settings.kernel in ("auto", "native"):
            most = settings.crossover_of(16, crossovers)
            native = use_native(model, most)
            few = min(most, settings.crossover_of(settings.bits, crossovers))
        widen_linears(model.model)
        if native is None or not native.joins:
            joined = JoinedPass.of(model, exact=True)
        return cls(native, joined, few, tried=True)

    def on_accelerator(self, model: LoadedModel) -> DecodePasses:
        """What joins is found while all weights are on the host and none is quantized, and kept
        when the same model is loaded otherwise."""
        if not self.tried:
            return DecodePasses(joined=JoinedPass.of(model, exact=False), tried=True)
        return DecodePasses(joined=self.joined and self.joined.over(model), tried=True)

    @property
    def together(self) -> bool:
        """Whether several micro-batches, a token of each, pass what surrounds the experts
        together."""
        return self.joined is not None or (self.native is not None and self.native.joins)

    def of_batches(self, count: int) -> DecodePass | None:
        """What decodes so many micro-batches."""
        return self.joined if count > 1 and self.joined is not None else self.native
