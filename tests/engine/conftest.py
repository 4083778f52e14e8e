"""A tiny random Qwen3-MoE with a byte-level tokenizer, shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from engine.device.cpu import CpuDevice
from engine.run.engine import Engine
from tests.engine.families import save_tiny

TEXT = (
    "The engine reads experts from the disk while the model thinks. "
    "A router chooses a few of them for every token, and most are chosen again soon. "
)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of make_tiny."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def make_tiny(folder: Path) -> Path:
    """A checkpoint with tokenizer and chat template; shapes that allow every precision."""
    save_tiny("qwen3_moe", folder, vocab_size=300, max_position_embeddings=512)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([TEXT], vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(tiny_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    """An open engine on the tiny model with a fresh cache folder."""
    opened = Engine(tiny_folder, CpuDevice(), tmp_path / "cache")
    yield opened
    opened.close()
