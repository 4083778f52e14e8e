"""Deployments made up for the formats: a small model, any settings, any names."""

from typing import Any

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.facts.model import ModelFacts
from engine.layout.record import Part, record_bytes_table
from tuner.deployment.document import DeployedWorkload, Deployment

WIDE = (Part("gate_up_proj", (512, 256)), Part("down_proj", (256, 256)))
LAYERS, EXPERTS = 8, 4
GPU = {"index": 0, "name": "a GPU", "total_bytes": 8_000_000_000}


def facts(parts: tuple[Part, ...] = WIDE, **changes: Any) -> ModelFacts:
    """Eight layers, seven of them with four experts."""
    moe_layers = changes.pop("moe_layers", LAYERS - 1)
    records = record_bytes_table(parts)
    every = {str(bits): size * moe_layers * EXPERTS for bits, size in records.items()}
    values: dict[str, Any] = {
        "id": "some-moe", "path": "/models/some-moe", "revision": "c0ffee", "fingerprint": "f" * 16,
        "family": "fake_moe", "layers": LAYERS, "moe_layers": moe_layers, "experts": EXPERTS,
        "experts_per_token": 2, "hidden_size": 256, "vocabulary": 512, "max_positions": 4096,
        "non_expert_bytes": 4_000_000, "parts": parts,
        "record_bytes": {str(bits): size for bits, size in records.items()},
        "expert_bytes": every, "kv_bytes_per_token": 2048, "predictors": ("none",),
        "has_tokenizer": True, "in_place_16": True,
    }  # fmt: skip
    return ModelFacts(**{**values, **changes})


def deployment(
    settings: dict[str, Any] | None = None,
    model: str = "org/some-moe",
    revision: str = "c0ffee",
    study: str = "small",
    prompts: tuple[str, ...] = ("a prompt",),
    gpus: tuple[dict[str, Any], ...] = (GPU,),
) -> Deployment:
    """A deployment of these settings over the defaults, with made-up figures."""
    wanted = {"cache.expert_bytes": 2_000_000, "budget.vram_bytes": 6_000_000_000}
    config = EngineConfig().overlay({**wanted, "device.name": "cuda:0", **(settings or {})})
    metric = {"value": 20.0, "low": 19.0, "high": 21.0, "n": 3, "unit": "tok/s"}
    machine = {"cpu": "a CPU", "cores": 8, "gpus": list(gpus)}
    return Deployment.model_validate(
        {
            "schema": "expertune/v1",
            "model": {"id": model, "revision": revision, "fingerprint": "f" * 16},
            "budget": config.to_dict()["budget"],
            "engine": config.to_dict(),
            "workload": DeployedWorkload.of(Workload("w", prompts)),
            "measured": {
                "output_tps": metric,
                "sentinel": {"compute_ms": 1.0, "read_ms": 1.0},
            },
            "quality": None,
            "neighbours": [],
            "machine": machine,
            "provenance": {
                "study": study, "trial": 3, "seed": 0, "created": "2026-01-01T00:00:00+00:00",
                "versions": {"expertune": "1.2.3"}, "commit": None,
            },
        }
    )  # fmt: skip
