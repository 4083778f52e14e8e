"""Reads config.json: the transformers config, a model on `meta`, its experts modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.errors import (
    CheckpointError,
    DenseModelError,
    FamilyError,
    NotAModelError,
    RemoteCodeError,
)
from engine.model.checkpoint import Checkpoint, read_description
from engine.model.config_numbers import check_numbers
from engine.model.quantized import check_method

_EXPERTS_ATTRIBUTES = ("has_gate", "has_bias", "is_transposed", "_is_expert_parallel")

_MOE_WORDS = ("Expert", "MoE", "Moe", "Router", "SparseMLP")


def read_config(folder: Path, checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The transformers config; refuses unknown families, remote code and quantizations."""
    return _read_config(folder, checkpoint.config, trust_remote_code=trust_remote_code)


def check_description(folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse unsupported models by config.json alone, before any weight is downloaded.

    Raises what load_model would: NotAModelError, RemoteCodeError, CheckpointError, FamilyError,
    DenseModelError.
    """
    described = read_description(folder)
    config = _read_config(folder, described, trust_remote_code=trust_remote_code)
    find_experts(build_meta_model(config, folder, trust_remote_code=trust_remote_code), config)


def _read_config(folder: Path, described: dict[str, Any], *, trust_remote_code: bool) -> Any:
    family = described["model_type"]
    own_code = "auto_map" in described
    if family not in CONFIG_MAPPING and not own_code:
        raise NotAModelError(
            f"{folder}: transformers does not know the model family '{family}'; a newer "
            "transformers may"
        )
    if own_code and family not in CONFIG_MAPPING and not trust_remote_code:
        raise RemoteCodeError(
            f"{folder} brings its own code for '{family}', which could do anything: read it, then "
            "pass --trust-remote-code"
        )
    check_method(folder, described)
    check_numbers(folder / "config.json", described)
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:  # whatever the file holds or its code does
        raise _invalid(folder, error) from error


def _invalid(folder: Path, error: Exception) -> CheckpointError:
    found = " ".join(str(error).split()) or type(error).__name__
    return CheckpointError(
        f"{folder / 'config.json'} is not a valid config ({type(error).__name__}: {found[:300]}): "
        "mend it (as UTF-8 without a byte order mark), copy it again, or install what it asks for"
    )


def build_meta_model(config: Any, folder: Path, *, trust_remote_code: bool) -> Any:
    """The causal language model on the meta device: shapes without memory."""
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
    except ValueError as error:
        if "sdpa" in str(error) or "scaled_dot_product" in str(error):
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(
                    config, attn_implementation="eager", trust_remote_code=trust_remote_code
                )
        raise NotAModelError(
            f"{folder} ({config.model_type}) is not a causal language model that transformers "
            f"can build: {str(error).splitlines()[0]}"
        ) from None
    except Exception as error:  # values that no model can have, or what its code does
        raise _invalid(folder, error) from error


def find_experts(model: Any, config: Any) -> list[tuple[str, nn.Module]]:
    """The experts modules that dispatch through transformers' experts interface, in order.

    Raises FamilyError for an MoE model outside the interface, DenseModelError for a dense one.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if all(hasattr(module, attribute) for attribute in _EXPERTS_ATTRIBUTES)
    ]
    if found:
        return found
    family = config.model_type
    class_names = {type(module).__name__ for module in model.modules() if module is not model}
    if any(word in class_name for word in _MOE_WORDS for class_name in class_names):
        raise FamilyError(
            f"the MoE family '{family}' does not use transformers' experts interface, so its "
            "experts cannot be offloaded one by one; families that do include qwen3_moe, mixtral, "
            "olmoe, deepseek_v3 and gpt_oss"
        )
    raise DenseModelError(
        f"'{family}' is a dense model: it has no experts to offload; give a Mixture-of-Experts "
        "model such as Qwen3-30B-A3B"
    )
