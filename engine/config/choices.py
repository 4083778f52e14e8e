"""The registries: every predictor, eviction and kernel by name, with the path of its factory.

A new one needs a file and a line here. Factories are named, not imported, so that the tuner knows
the choices without loading policies or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any, Literal, get_args, get_origin

PREDICTORS: dict[str, str] = {
    "none": "engine.policy.predict.none:build",
    "repeat_last": "engine.policy.predict.repeat_last:build",
    "popularity": "engine.policy.predict.popularity:PopularityPredictor",
    "next_gate": "engine.policy.predict.next_gate:build",
    "correlation": "engine.policy.predict.correlation:CorrelationPredictor",
    "activation_path": "engine.policy.predict.activation_path:ActivationPathPredictor",
    "expert_map": "engine.policy.predict.expert_map:ExpertMapPredictor",
    "mlp": "engine.policy.predict.mlp:MlpPredictor",
    "pregate": "engine.policy.predict.pregate:PregatePredictor",
    "oracle": "engine.policy.predict.oracle:build",
}
"""Factories take a PolicyContext and return an engine.policy.predict.base.Predictor."""

EVICTIONS: dict[str, str] = {
    "lru": "engine.policy.evict.lru:build",
    "none": "engine.policy.evict.lru:build_none",
    "lfu": "engine.policy.evict.lfu:build",
    "arc": "engine.policy.evict.arc:build",
    "hobbit": "engine.policy.evict.weighted:build",
    "p_freq": "engine.policy.evict.p_freq:build",
    "belady": "engine.policy.evict.belady:build",
}
"""Factories take a PolicyContext and return an engine.policy.evict.base.Eviction."""

KERNELS: dict[str, str] = {
    "native": "engine.experts.kernels.native:Native",
    "torch_int4": "engine.experts.kernels.torch_packed:TorchInt4",
    "triton_int4": "engine.experts.kernels.triton_int4:TritonInt4",
    "cuda_int4": "engine.experts.kernels.torch_packed:CudaInt4",
    "torch_int8": "engine.experts.kernels.torch_packed:TorchInt8",
}
"""Classes of packed kernels (engine.experts.kernels.base.Kernel), in order of preference."""

KERNEL_WORDS = ("auto", "dequantize")


class Registered(Mapping[str, Any]):
    """One of the tables above as `name -> factory`; a factory is imported on first use."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def __getitem__(self, name: str) -> Any:
        module, _, attribute = self._table[name].partition(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The allowed values of a setting of this type: a Literal's values, or the names registered
    under the kind in an Annotated type; () for a type without choices."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) is not Annotated:
        return ()
    kind = get_args(hint)[1]
    if kind == "kernel":
        return (*KERNEL_WORDS, *KERNELS)
    return tuple({"predictor": PREDICTORS, "eviction": EVICTIONS}[kind])
