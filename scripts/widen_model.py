"""Write a wider twin of a model that computes the same function: `python scripts/widen_model.py`.

The hidden vector becomes `hidden` copies of itself laid end to end and each expert's inner vector
`expert` copies; weights that write a widened vector are tiled along it, weights that read one are
tiled and divided by the number of copies. Both numbers are powers of two, so that the division is
exact in bfloat16. Logits and router choices stay, expert bytes grow `hidden * expert` times.

In: a checkpoint folder of a family named in `FAMILIES`. Out: the same layout, in shards. One tensor
is read at a time and one shard held, whatever the size of the twin.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
MIB = 1024 * 1024


class WidenError(ValueError):
    """The request cannot produce a twin; the message says what was given and what is allowed."""


@dataclass(frozen=True)
class Factors:
    """How often the hidden vector and each expert's inner vector are repeated."""

    hidden: int
    expert: int


@dataclass(frozen=True)
class Rule:
    """The vector that a weight writes (rows) and reads (columns): `hidden`, `expert` or None
    (unchanged)."""

    pattern: str
    rows: str | None
    columns: str | None = None
    divides: bool = True


@dataclass(frozen=True)
class Shard:
    """One output file: its tensors' names and its bytes."""

    names: tuple[str, ...]
    size_bytes: int


_LAYER = r"model\.layers\.\d+\."
QWEN3_MOE = (
    Rule(r"model\.embed_tokens\.weight", None, "hidden", divides=False),
    Rule(r"lm_head\.weight", None, "hidden"),
    Rule(r"model\.norm\.weight", "hidden"),
    Rule(_LAYER + r"(input_layernorm|post_attention_layernorm)\.weight", "hidden"),
    Rule(_LAYER + r"self_attn\.[qk]_norm\.weight", None),
    Rule(_LAYER + r"self_attn\.[qkv]_proj\.weight", None, "hidden"),
    Rule(_LAYER + r"self_attn\.[qkv]_proj\.bias", None),
    Rule(_LAYER + r"self_attn\.o_proj\.(weight|bias)", "hidden"),
    Rule(_LAYER + r"mlp\.gate\.weight", None, "hidden"),
    Rule(_LAYER + r"mlp\.experts\.\d+\.(gate|up)_proj\.weight", "expert", "hidden"),
    Rule(_LAYER + r"mlp\.experts\.\d+\.down_proj\.weight", "hidden", "expert"),
    Rule(_LAYER + r"mlp\.(gate|up)_proj\.weight", None, "hidden"),
    Rule(_LAYER + r"mlp\.down_proj\.weight", "hidden"),
)
# Queries and keys are normed over all heads at once, as wide as the hidden vector: heads are copied
# with it.
OLMOE = (
    Rule(_LAYER + r"self_attn\.[qk]_norm\.weight", "hidden"),
    Rule(_LAYER + r"self_attn\.[qkv]_proj\.weight", "hidden", "hidden"),
    Rule(_LAYER + r"self_attn\.o_proj\.weight", "hidden", "hidden"),
    *QWEN3_MOE,
)


@dataclass(frozen=True)
class Family:
    """The first rule that matches a name holds. sizes: the vector that a setting grows with."""

    rules: tuple[Rule, ...]
    sizes: dict[str, str]


FAMILIES = {
    "qwen3_moe": Family(QWEN3_MOE, {"hidden_size": "hidden", "moe_intermediate_size": "expert"}),
    "olmoe": Family(
        OLMOE,
        {
            "hidden_size": "hidden",
            "num_attention_heads": "hidden",
            "num_key_value_heads": "hidden",
            "intermediate_size": "expert",
        },
    ),
}


def widen(source: Path, out: Path, factors: Factors, shard_bytes: int = 256 * MIB) -> None:
    """Writes the twin of `source` to the new folder `out`; `out` appears only when it is complete.

    Raises `WidenError` for factors that are not powers of two, an unknown family, tied embeddings,
    an unknown tensor or an `out` that exists.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    family = _check(config, out, factors)
    rules = family.rules
    files = _tensor_files(source)
    shards = list(_plan(files, rules, factors, shard_bytes))
    fresh = out.with_name(out.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: widen_tensor(_read(files[name], name), find_rule(name, rules), factors)
            for name in shard.names
        }
        save_file(tensors, fresh / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard.names, file)
    total = sum(shard.size_bytes for shard in shards)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (fresh / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _copy_rest(source, fresh, config, family, factors)
    fresh.rename(out)


def find_rule(name: str, rules: tuple[Rule, ...]) -> Rule:
    """Finds the rule of a tensor; raises `WidenError` if no rule matches its name."""
    for rule in rules:
        if re.fullmatch(rule.pattern, name):
            return rule
    raise WidenError(f"tensor {name!r} is not part of a model that can be widened")


def widen_tensor(tensor: Tensor, rule: Rule, factors: Factors) -> Tensor:
    """Tiles one tensor as its rule says: [rows, columns] or [rows] in, the wider one out."""
    rows = _times(rule.rows, factors)
    if tensor.dim() == 1:
        return tensor.repeat(rows)
    columns = _times(rule.columns, factors)
    wide = tensor.repeat(rows, columns)
    return wide / columns if rule.divides else wide


def _check(config: dict[str, Any], out: Path, factors: Factors) -> Family:
    for name, value in (("--hidden", factors.hidden), ("--expert", factors.expert)):
        if value < 1 or value & (value - 1):
            raise WidenError(
                f"{name} {value} is not a power of two; take 1, 2, 4, 8, ... "
                "(other factors change the rounding of bfloat16 and with it some routes)"
            )
    name = config.get("model_type")
    if name not in FAMILIES:
        raise WidenError(f"model_type {name!r} cannot be widened; known: {', '.join(FAMILIES)}")
    if config.get("tie_word_embeddings"):
        raise WidenError(
            "tied embeddings cannot be widened: the output reads what the input writes"
        )
    if out.exists():
        raise WidenError(f"{out} exists; name a new folder or remove it first")
    return FAMILIES[name]


def _plan(
    files: dict[str, Path], rules: tuple[Rule, ...], factors: Factors, shard_bytes: int
) -> Iterator[Shard]:
    names: list[str] = []
    size = 0
    for name in sorted(files, key=_layer_order):
        rule = find_rule(name, rules)
        tensor_bytes = _stored_bytes(files[name], name)
        tensor_bytes *= _times(rule.rows, factors) * _times(rule.columns, factors)
        if names and size + tensor_bytes > shard_bytes:
            yield Shard(tuple(names), size)
            names, size = [], 0
        names.append(name)
        size += tensor_bytes
    yield Shard(tuple(names), size)


def _times(vector: str | None, factors: Factors) -> int:
    return {None: 1, "hidden": factors.hidden, "expert": factors.expert}[vector]


def _layer_order(name: str) -> tuple[int, str]:
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1, name)


def _tensor_files(source: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise WidenError(f"{source} holds no .safetensors file")
    return found


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor


def _stored_bytes(path: Path, name: str) -> int:
    tensor = _read(path, name)
    return tensor.numel() * tensor.element_size()


def _copy_rest(
    source: Path, out: Path, config: dict[str, Any], family: Family, factors: Factors
) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name != INDEX_NAME:
            shutil.copyfile(path, out / path.name)
    wider = dict(config)
    for setting, vector in family.sizes.items():
        wider[setting] *= _times(vector, factors)
    (out / "config.json").write_text(json.dumps(wider, indent=2) + "\n", encoding="utf-8")


def main(
    source: Annotated[Path, typer.Argument(help="checkpoint folder to read")],
    out: Annotated[Path, typer.Argument(help="new folder for the twin")],
    hidden: Annotated[int, typer.Option(help="copies of the hidden vector, a power of two")],
    expert: Annotated[int, typer.Option(help="copies of the expert width, a power of two")],
    shard_bytes: Annotated[int, typer.Option(help="most bytes in one output file")] = 256 * MIB,
) -> None:
    """Write the wider twin of SOURCE to OUT."""
    torch.set_num_threads(1)
    try:
        widen(source, out, Factors(hidden, expert), shard_bytes)
    except WidenError as error:
        raise typer.BadParameter(str(error)) from error


if __name__ == "__main__":
    typer.run(main)
