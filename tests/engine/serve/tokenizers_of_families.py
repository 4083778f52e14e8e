"""A small tokenizer of each family, made here: what a token's text is differs between them."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEXTS = (
    "the cat sat on the mat",
    "na\u00efve caf\u00e9 \u20ac \U0001f600",
    "a  b\n\nc",
    "don't, x!",
)
WORDS = ("the", "cat", "sat", "on", "mat", "a", "b", "c", "x", "don", "'t", ",", "!", "s")
_SPECIAL = ("<s>", "</s>", "<unk>")


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: every token is a string of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("\u00e2", "\u0124"), ("\u0120", "c")]
    names = [*_SPECIAL, *alphabet, *(left + right for left, right in merges)]
    plain = Tokenizer(models.BPE(_numbered(names), merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return _wrapped(plain)


def metaspace() -> PreTrainedTokenizerFast:
    """SentencePiece's Unigram: a space is part of the word behind it."""
    letters = sorted({letter for text in TEXTS for letter in text if not letter.isspace()})
    names = [*_SPECIAL, "\u2581", *(f"\u2581{word}" for word in WORDS), *WORDS, *letters]
    scores = [(name, -1.0 - 0.01 * place) for place, name in enumerate(dict.fromkeys(names))]
    plain = Tokenizer(models.Unigram(scores, unk_id=2))
    plain.pre_tokenizer = pre_tokenizers.Metaspace()
    plain.decoder = decoders.Metaspace()
    return _wrapped(plain)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2's BPE: words with their spaces, and bytes for what no word has."""
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("\u2581", "c"), ("a", "t")]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    joined = (left + right for left, right in merges)
    names = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *joined]
    plain = Tokenizer(
        models.BPE(_numbered(names), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    plain.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    plain.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _wrapped(plain)


def word_piece() -> PreTrainedTokenizerFast:
    """BERT's: words, and continuations that begin with ##."""
    names = [*_SPECIAL, *WORDS, *(f"##{word}" for word in WORDS), "na\u00efve", "\u20ac"]
    plain = Tokenizer(models.WordPiece(_numbered(names), unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    plain.decoder = decoders.WordPiece()
    return _wrapped(plain)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "metaspace": metaspace,
    "byte_fallback": byte_fallback,
    "word_piece": word_piece,
}


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def _wrapped(plain: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
