"""Train the small mixture-of-experts language model that the demo study runs on.

Stages, each one a command that reads what the one before wrote into the work folder:
`corpus` (prose out of Debian documentation packages), `tokenizer` (byte-level BPE and the token
stream), `train` (resumable, on the CPU, one thread in each of two processes), `export` (a bfloat16
checkpoint in the hub's layout). Run from the root: `python -m studies.demo.build.train STAGE`.

While `train` runs, a file `decay` in the work folder that holds a number of tokens begins the
learning rate's decay to zero over that many tokens; `--length` may differ from start to start.

B sequences of a batch, L length, T tokens, E experts.
"""

import datetime
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from studies.demo.build.corpus import collect
from studies.demo.build.evaluation import BOS, EOS, PAD, evaluate_model
from studies.demo.build.kernels import KERNELS_NAME, register_kernels
from studies.demo.build.routing import RouterLogits, routing_losses

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
VOCABULARY = 4096
HIT_RATE_BAND = (0.70, 0.76)

app = typer.Typer(add_completion=False, help=__doc__)
Work = Annotated[Path, typer.Argument(help="folder that the stages share, outside the repository")]


@dataclass(frozen=True)
class Recipe:
    """How one run trains; `*_weight` are the losses' factors at the start."""

    length: int
    batch_tokens: int
    peak_rate: float
    warmup_tokens: int
    balance_weight: float
    minutes_between_saves: float
    processes: int


@dataclass
class Progress:
    """What a resumed run must know beside the weights."""

    step: int = 0
    tokens: int = 0
    decay_start_tokens: int | None = None
    reuse_weight: float = 0.01


@app.command()
def corpus(debs: Path, work: Work) -> None:
    """Read prose out of the `.deb` files in DEBS into WORK/corpus."""
    sources = collect(debs, work / "corpus", work / "unpacked")
    print(f"{sum(s.text_bytes for s in sources) / 1e6:.1f} MB from {len(sources)} packages")


@app.command()
def tokenizer(work: Work) -> None:
    """Train the byte-level BPE on the training text and encode both parts as token streams."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(work / "corpus/train.jsonl"), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=2048
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(work / "tokenizer")
    for part in ("train", "heldout"):
        stream = list(_token_stream(bpe, work / f"corpus/{part}.jsonl"))
        np.save(work / f"{part}.npy", np.concatenate(stream))
        print(part, sum(map(len, stream)), "tokens")


@app.command()
def train(
    work: Work,
    length: int = 256,
    batch_tokens: int = 2048,
    peak_rate: float = 3e-3,
    warmup_tokens: int = 200_000,
    balance_weight: float = 0.01,
    minutes_between_saves: float = 5.0,
    processes: int = 2,
    pid_file: Path | None = None,
) -> None:
    """Train, or go on from WORK/checkpoint.pt, until the decay ends."""
    if pid_file is not None:
        pid_file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    recipe = Recipe(
        length=length,
        batch_tokens=batch_tokens,
        peak_rate=peak_rate,
        warmup_tokens=warmup_tokens,
        balance_weight=balance_weight,
        minutes_between_saves=minutes_between_saves,
        processes=processes,
    )
    (work / "rendezvous").unlink(missing_ok=True)
    context = mp.get_context("spawn")
    others = [
        context.Process(target=_train_process, args=(rank, work, recipe), daemon=True)
        for rank in range(1, processes)
    ]
    for other in others:
        other.start()
    _train_process(0, work, recipe)
    for other in others:
        other.join()


@app.command()
def export(work: Work, out: Path, random: bool = False) -> None:
    """Write the checkpoint (or random weights) as a bfloat16 model with its tokenizer to OUT."""
    model = build_model()
    if not random:
        model.load_state_dict(torch.load(work / "checkpoint.pt", weights_only=True)["model"])
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(fresh)
    PreTrainedTokenizerFast.from_pretrained(work / "tokenizer").save_pretrained(fresh)
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@app.command()
def evaluate(work: Work, model_dir: Path) -> None:
    """Print bits per byte and cache hit rates of an exported model on the whole held-out text."""
    model = _with_kernels(Qwen3MoeForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16))
    print(evaluate_model(model, work, length=512, batches=10**9, routed_texts=32))


def build_model() -> Qwen3MoeForCausalLM:
    """Build the demo model with random float32 weights.

    Tokens enter the residual stream stronger than what the layers add to it at first; with one
    standard deviation for all weights the model stayed at unigram level for its first 0.6 M tokens.
    """
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=32,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=2048,
        initializer_range=0.03,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(std=0.5)
        for layer in model.model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.experts.down_proj):
                weight.mul_((2 * config.num_hidden_layers) ** -0.5)
    return model


def rate_factor(progress: Progress, warmup_tokens: int, decay_tokens: int | None) -> float:
    """Return the learning rate's factor: linear warm-up, then flat, then linear decay to 0."""
    warm = min(1.0, (progress.tokens + 1) / warmup_tokens)
    if progress.decay_start_tokens is None or decay_tokens is None:
        return warm
    done = (progress.tokens - progress.decay_start_tokens) / max(decay_tokens, 1)
    return warm * max(0.0, 1.0 - done)


def _train_process(rank: int, work: Path, recipe: Recipe) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{(work / 'rendezvous').resolve()}",
        rank=rank,
        world_size=recipe.processes,
        timeout=datetime.timedelta(hours=6),
    )
    torch.manual_seed(0)
    model = _with_kernels(build_model())
    optimizer = torch.optim.AdamW(
        _parameter_groups(model), lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True
    )
    progress = Progress()
    path = work / "checkpoint.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(**saved["progress"])
    _loop(model, optimizer, progress, work, recipe, rank)
    dist.destroy_process_group()


def _loop(
    model: Qwen3MoeForCausalLM,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    work: Path,
    recipe: Recipe,
    rank: int,
) -> None:
    stream = np.load(work / "train.npy", mmap_mode="r")
    saved_at = began = time.monotonic()
    first_tokens = progress.tokens
    while True:
        decay_tokens = _read_decay(work, progress, rank)
        factor = rate_factor(progress, recipe.warmup_tokens, decay_tokens)
        if factor == 0.0:
            break
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_rate * factor
        losses = _step(model, optimizer, stream, progress, recipe, rank)
        progress.step += 1
        progress.tokens += recipe.batch_tokens * recipe.processes
        if progress.step % 10 == 0 and rank == 0:
            speed = (progress.tokens - first_tokens) / (time.monotonic() - began)
            print(
                f"step {progress.step} tokens {progress.tokens} loss {losses[0]:.3f} "
                f"balance {losses[1]:.2f} reuse {losses[2]:.3f} weight {progress.reuse_weight:.4f} "
                f"rate {factor:.3f} tokens/s {speed:.0f}",
                flush=True,
            )
        if progress.step % 100 == 0:
            _steer(model, progress, work, rank)
        if rank == 0 and time.monotonic() - saved_at > 60 * recipe.minutes_between_saves:
            _save(work, model, optimizer, progress)
            saved_at = time.monotonic()
    if rank == 0:
        _save(work, model, optimizer, progress)
        print("end", evaluate_model(model, work, recipe.length, 32, 16), flush=True)


def _step(
    model: Qwen3MoeForCausalLM,
    optimizer: torch.optim.Optimizer,
    stream: np.ndarray[Any, Any],
    progress: Progress,
    recipe: Recipe,
    rank: int,
) -> list[float]:
    rng = np.random.default_rng([progress.step, rank])
    starts = rng.integers(0, len(stream) - recipe.length - 1, recipe.batch_tokens // recipe.length)
    rows = np.stack([stream[s : s + recipe.length + 1] for s in starts]).astype(np.int64)
    ids = torch.from_numpy(rows)  # [B, L + 1]
    with RouterLogits(model) as logits, torch.autocast("cpu", torch.bfloat16):
        scores = model(ids[:, :-1], use_cache=False).logits  # [B, L, vocabulary]
    text = nn.functional.cross_entropy(scores.flatten(0, 1).float(), ids[:, 1:].flatten())
    routing = routing_losses(logits, len(ids), model.config.num_experts_per_tok)
    loss = text + recipe.balance_weight * routing.balance + progress.reuse_weight * routing.reuse
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [cast(Tensor, p.grad) for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= recipe.processes
    flat *= min(1.0, 1.0 / (float(flat.norm()) + 1e-6))
    first = 0
    for gradient in gradients:
        gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
        first += gradient.numel()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return [float(x.detach()) for x in (text, routing.balance, routing.reuse)]


def _steer(model: Qwen3MoeForCausalLM, progress: Progress, work: Path, rank: int) -> None:
    """Evaluate, and move the reuse loss's weight so that the hit rate stays in its band."""
    weight = torch.zeros(1)
    if rank == 0:
        result = evaluate_model(model, work, length=256, batches=8, routed_texts=8)
        print(f"eval bpb {result.bits_per_byte:.4f} hit rate {result.hit_rate:.3f}", flush=True)
        low, high = HIT_RATE_BAND
        change = 1.3 if result.hit_rate < low else 1 / 1.3 if result.hit_rate > high else 1.0
        weight[0] = min(max(progress.reuse_weight * change, 1e-4), 0.2)
    dist.broadcast(weight, 0)
    progress.reuse_weight = float(weight)


def _read_decay(work: Path, progress: Progress, rank: int) -> int | None:
    """Agree over the processes on how long the decay is; the first sight of it fixes its start."""
    tokens = torch.zeros(1, dtype=torch.int64)
    path = work / "decay"
    if rank == 0 and path.exists():
        tokens[0] = int(path.read_text(encoding="utf-8") or 0)
    dist.broadcast(tokens, 0)
    if int(tokens) == 0:
        return None
    if progress.decay_start_tokens is None:
        progress.decay_start_tokens = progress.tokens
    return int(tokens)


def _save(
    work: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "progress": vars(progress),
    }
    torch.save(state, work / "checkpoint.new")
    (work / "checkpoint.new").replace(work / "checkpoint.pt")


def _with_kernels(model: Qwen3MoeForCausalLM) -> Qwen3MoeForCausalLM:
    register_kernels()
    model.set_experts_implementation(KERNELS_NAME)
    model.set_attn_implementation(KERNELS_NAME)
    return model


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.03}, {"params": vectors, "weight_decay": 0.0}]


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _token_stream(bpe: Tokenizer, path: Path) -> Iterator[np.ndarray[Any, Any]]:
    """Yield each document's tokens between BOS and EOS, the documents in a seeded random order."""
    texts = list(_texts(path))
    for i in np.random.default_rng(0).permutation(len(texts)):
        yield np.array([0, *bpe.encode(texts[i]).ids, 1], dtype=np.uint16)


if __name__ == "__main__":
    app()
