"""Build the demo study's prompts and evaluation tasks out of the held-out documents.

`python -m studies.demo.build.tasks HELDOUT_JSONL TOKENIZER OUT` writes `heldout.txt`,
`prompts.jsonl` and `tasks/`: bits per byte (`demo_bpb`), a four-way choice of the true continuation
(`demo_choice`) and the MMLU questions that lm-evaluation-harness ships as few-shot examples
(`demo_mmlu`). A document that gives a prompt gives nothing to the tasks. Every choice is seeded, so
a second run is the same.
"""

import json
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import lm_eval
import typer
import yaml
from transformers import PreTrainedTokenizerFast

SEED = 20
PROMPTS = 72
PROMPT_TOKENS = 256
CONTINUATION_TOKENS = 256
BPB_DOCUMENTS = 400
BPB_BYTES = (500, 1500)
CHOICE_ITEMS = 1400
CONTEXT_CHARS = 220
ENDING_CHARS = 80
ITEMS_PER_DOCUMENT = 40
HELDOUT_BYTES = 1_000_000


@dataclass(frozen=True)
class Prompt:
    """A workload prompt with the text that really follows it."""

    prompt: str
    continuation: str


@dataclass(frozen=True)
class Choice:
    """One context, four continuations and the place of the true one."""

    context: str
    choices: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Question:
    """One MMLU question with its four answers and the place of the right one."""

    subject: str
    question: str
    choices: tuple[str, ...]
    label: int


def build(heldout: Path, tokenizer: Path, out: Path) -> None:
    """Write every file of the demo study that comes from the held-out documents."""
    documents = [
        json.loads(line)["text"] for line in heldout.read_text(encoding="utf-8").splitlines()
    ]
    random.Random(SEED).shuffle(documents)
    fast = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    prompts, rest = make_prompts(documents, fast)
    _write_text(out / "heldout.txt", documents)
    _write_rows(out / "prompts.jsonl", [asdict(prompt) for prompt in prompts])
    passages = make_passages(rest)
    choices = make_choices(rest)
    questions = shipped_mmlu_questions()
    tasks = out / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    _write_rows(tasks / "demo_bpb.jsonl", [{"text": text} for text in passages])
    _write_rows(tasks / "demo_choice.jsonl", [asdict(choice) for choice in choices])
    _write_rows(tasks / "demo_mmlu.jsonl", [asdict(question) for question in questions])
    print(f"{len(prompts)} prompts, {len(passages)} passages, {len(choices)} choices, "
          f"{len(questions)} questions")  # fmt: skip


def make_prompts(
    documents: list[str], fast: PreTrainedTokenizerFast
) -> tuple[list[Prompt], list[str]]:
    """Take one prompt from each long document; also return the documents not used."""
    prompts: list[Prompt] = []
    rest: list[str] = []
    for text in documents:
        encoding = fast(text, return_offsets_mapping=True, verbose=False)
        offsets = encoding["offset_mapping"]
        if len(prompts) >= PROMPTS or len(offsets) < PROMPT_TOKENS + CONTINUATION_TOKENS + 16:
            rest.append(text)
            continue
        middle = _word_end(text, offsets[PROMPT_TOKENS][0])
        end = _word_end(text, offsets[PROMPT_TOKENS + CONTINUATION_TOKENS + 8][0])
        prompts.append(Prompt(text[:middle], text[middle:end]))
    return prompts, rest


def make_passages(documents: list[str]) -> list[str]:
    """Cut whole paragraphs into passages of `BPB_BYTES`, at most a few from each document."""
    passages: list[str] = []
    low, high = BPB_BYTES
    for text in documents:
        held = ""
        taken = 0
        for paragraph in text.split("\n"):
            held = f"{held}\n{paragraph}" if held else paragraph
            if low <= len(held.encode()) <= high:
                passages.append(held)
                taken += 1
            if len(held.encode()) >= low:
                held = ""
            if taken == 4:
                break
    random.Random(SEED + 1).shuffle(passages)
    return passages[:BPB_DOCUMENTS]


def make_choices(documents: list[str]) -> list[Choice]:
    """Make the four-way items; the three wrong endings come from three other documents."""
    rng = random.Random(SEED + 2)
    pairs = [
        (number, context, ending)
        for number, text in enumerate(documents)
        for context, ending in _splits(text)
    ]
    rng.shuffle(pairs)
    items = []
    for number, context, ending in pairs[:CHOICE_ITEMS]:
        near = [p for p in rng.sample(pairs, 400) if p[0] != number]
        near.sort(key=lambda pair: abs(len(pair[2]) - len(ending)))
        others = list({pair[0]: pair[2] for pair in reversed(near[:6])}.values())[-3:]
        choices = [ending, *others]
        rng.shuffle(choices)
        items.append(Choice(context, tuple(choices), choices.index(ending)))
    return [item for item in items if len(set(item.choices)) == 4]


def shipped_mmlu_questions() -> list[Question]:
    """Read the MMLU questions inside the installed lm-evaluation-harness package (MIT)."""
    folder = Path(lm_eval.__file__).parent / "tasks/mmlu/flan_cot_fewshot"
    questions = []
    for path in sorted(folder.glob("mmlu_*.yaml")):
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))
        for sample in definition["fewshot_config"]["samples"]:
            question = _parse_question(
                definition["dataset_name"], sample["question"], sample["target"]
            )
            if question is not None:
                questions.append(question)
    return questions


def _parse_question(subject: str, text: str, target: str) -> Question | None:
    parts = re.fullmatch(r"(.*?)\s*\(A\) (.*) \(B\) (.*) \(C\) (.*) \(D\) (.*)", text, re.DOTALL)
    answer = re.search(r"\(([ABCD])\)\.?\s*$", target)
    if parts is None or answer is None:
        return None
    asked, *choices = (" ".join(part.split()) for part in parts.groups())
    return Question(subject, asked, tuple(choices), "ABCD".index(answer[1]))


def _splits(text: str) -> list[tuple[str, str]]:
    """Cut sentences: (the characters before, the last words), at most a few from each document."""
    found: list[tuple[str, str]] = []
    used = 0
    for sentence in re.finditer(r"[^\n.!?]{90,}[.!?](?=\s)", text):
        end = sentence.end()
        middle = _word_end(text, max(end - ENDING_CHARS, sentence.start() + 20))
        start = _word_end(text, middle - CONTEXT_CHARS) + 1
        if start < used or middle - CONTEXT_CHARS < 0 or end - middle < ENDING_CHARS // 2:
            continue
        found.append((text[start:middle], text[middle + 1 : end]))
        used = end
        if len(found) == ITEMS_PER_DOCUMENT:
            break
    return found


def _word_end(text: str, position: int) -> int:
    """Return the place of the first white space at or after a position."""
    space = re.compile(r"\s|$").search(text, position)
    assert space is not None, "the pattern matches at the end of any text"
    return space.start()


def _write_text(path: Path, documents: list[str]) -> None:
    kept: list[str] = []
    size = 0
    for text in documents:
        size += len(text.encode()) + 2
        if size <= HELDOUT_BYTES:
            kept.append(text)
    path.write_text("\n\n".join(kept) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(
    heldout: Annotated[Path, typer.Argument(help="held-out documents, one JSON object a line")],
    tokenizer: Annotated[Path, typer.Argument(help="folder of the demo tokenizer")],
    out: Annotated[Path, typer.Argument(help="the demo study's folder")],
) -> None:
    """Build the prompts and the tasks."""
    build(heldout, tokenizer, out)


if __name__ == "__main__":
    typer.run(main)
