"""A checkpoint's tokenizer: whether it has one, and loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.errors import ModelError, RemoteCodeError
from engine.inputs.bounds import MOST_JSON_BYTES
from engine.model.weight_files import lfs_pointer, read_json, starts_as_pointer

# What transformers makes a tokenizer from without code of the checkpoint's own.
FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tokenizer.model.v3", "tekken.json",
)  # fmt: skip
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.json"  # where processors kept it
CHARACTERS_PER_TOKEN = 16  # more than texts have; languages have 1 to 6
_MARGIN = 1024
_TEXT = "a"  # that every tokenizer reads
_BESIDE = (
    CONFIG, TEMPLATE, "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "merges.txt",
)  # fmt: skip


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer, in a file or as code."""
    return any((folder / name).is_file() for name in FILES) or brings_code(folder)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer has a chat template, in a file of its own or in its config."""
    if any((folder / name).is_file() for name in (TEMPLATE, "chat_template.jinja")):
        return True
    path = folder / CONFIG
    found = read_json(path) if path.is_file() else {}
    return isinstance(found, dict) and bool(found.get("chat_template"))


def brings_code(folder: Path) -> bool:
    """Whether the tokenizer is code that the checkpoint brings (as Kimi's and Moonlight's is)."""
    path = folder / CONFIG
    found = read_json(path) if path.is_file() else {}
    named = found.get("auto_map") if isinstance(found, dict) else None
    return isinstance(named, dict) and "AutoTokenizer" in named


def encode_enough(tokenizer: Any, text: str, tokens: int, **options: Any) -> list[int]:
    """Token ids of a text; of one far longer than so many tokens the ids of a beginning that has
    more. options: of the tokenizer.

    Time and memory follow the tokens that are wanted, not the text that was sent. Raises ModelError
    for a text that the tokenizer's files do not cover.
    """
    characters = tokens * CHARACTERS_PER_TOKEN + _MARGIN
    while True:
        ids = encode(tokenizer, text[:characters], **options)
        if len(ids) > tokens or characters >= len(text):
            return ids
        characters *= 2  # long tokens, such as runs of spaces


def encode(tokenizer: Any, text: str, **options: Any) -> list[int]:
    """Token ids of a text. Raises ModelError as `encode_enough` does."""
    try:
        return list(tokenizer(text, **options)["input_ids"])
    except BaseException as error:
        if not _is_theirs(error):
            raise
        raise ModelError(
            f"the model's tokenizer cannot read this text ({_said(error)}): copy its files again"
        ) from None


def _is_theirs(error: BaseException) -> bool:
    """Whether code of the tokenizer's raised an error; a panic of Rust's is no Exception."""
    if isinstance(error, MemoryError):  # of this machine's, whatever the files hold
        return False
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _said(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first:.300}"


def load_tokenizer(folder: Path, name: str, *, trust_remote_code: bool) -> Any:
    """The tokenizer of a checkpoint. name: of the model, for messages.

    Raises ModelError if there is none or it cannot be loaded, RemoteCodeError if it is code and
    code was not allowed.
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise ModelError(
            f"{name} has no tokenizer, so it cannot read text: put tokenizer.json beside its "
            "config.json"
        )
    code = brings_code(folder)
    if code and not trust_remote_code:
        raise RemoteCodeError(
            f"the tokenizer of {name} is code that the checkpoint brings: read it, then allow it "
            "with --trust-remote-code"
        )
    files = [folder / one for one in (*FILES, *_BESIDE) if (folder / one).is_file()]
    for file in files:
        if starts_as_pointer(file):
            raise lfs_pointer(file)
        if file.stat().st_size > MOST_JSON_BYTES:
            raise ModelError(
                f"{file} is larger than {MOST_JSON_BYTES >> 20} MiB, as no tokenizer's file is: "
                "copy it again"
            )
    try:
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
        list(found(_TEXT)["input_ids"])  # some files fail only when they are used
    except BaseException as error:  # whatever the files hold or their code does
        if not _is_theirs(error):
            raise
        for file in files:
            if file.suffix == ".json":
                read_json(file)  # names a file that is no JSON
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded ({_said(error)}): copy its files again, or "
            "install what it asks for"
        ) from error
    if not found.chat_template and folder / TEMPLATE in files:
        kept = read_json(folder / TEMPLATE)
        found.chat_template = kept.get("chat_template") if isinstance(kept, dict) else None
    return found
