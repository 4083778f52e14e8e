"""The demo model's text: prose out of unpacked documentation packages.

In: a folder of Debian `.deb` files from the free `main` archive (fetched with `apt-get download`).
Out: `train.jsonl`, `heldout.jsonl` (one document a line: package, path, text) and `sources.json`
(package, version, licence names as its copyright file states them, bytes kept).
Whole documents are held out, and a paragraph seen in one document is dropped from every later one.
"""

import gzip
import hashlib
import json
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import lxml.etree  # type: ignore[import-untyped]
import lxml.html  # type: ignore[import-untyped]

HELDOUT_IN_1000 = 18
MIN_PARAGRAPH_CHARS = 60
MIN_DOCUMENT_CHARS = 400
MAX_DOCUMENT_CHARS = 200_000
TEXT_ENDINGS = (".txt", ".txt.gz", ".rst", ".rst.gz", ".md", ".md.gz")
HTML_ENDINGS = (".html", ".htm", ".xhtml", ".html.gz", ".page", ".xml")
BLOCKS = ("p", "li", "dd", "blockquote")
DROPPED = (
    "script",
    "style",
    "pre",
    "table",
    "nav",
    "header",
    "footer",
    "head",
    "screen",
    "code-block",
)
STOP_WORDS = frozenset(
    """the of and to a in is that it for as with be this by are on or an not can if you from which
    will was at have has but when they all its one i he his we there been were more use
    used""".split()  # noqa: SIM905
)
SKIPPED_PATH = re.compile(
    r"(genindex|py-modindex|searchindex|changelog|/copyright|\.po$|/(de|fr|es|it|ja|pt|ru|zh|ko|tr|nl|pl|sv|cs|da|el|uk|hu|fi|ro|sl|sr|ca|pt_BR|zh_CN|zh_TW|pt-BR|zh-CN)/|\.(de|fr|es|ja|ko|tr|pt-br|zh-cn|da)(\.utf8|\.iso.*|\.euc.*)?$)"
)
PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "¶": ""}
)


@dataclass(frozen=True)
class Source:
    """A package that text was taken from, with its licences as its copyright file names them."""

    package: str
    version: str
    licences: tuple[str, ...]
    documents: int
    text_bytes: int


@dataclass(frozen=True)
class Document:
    """One file's prose: paragraphs joined by newlines."""

    package: str
    path: str
    text: str


def collect(debs: Path, out: Path, work: Path) -> list[Source]:
    """Unpack every `.deb` under `debs` into `work`, write the documents and sources to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    sources = []
    with (
        (out / "train.jsonl").open("w", encoding="utf-8") as train,
        (out / "heldout.jsonl").open("w", encoding="utf-8") as heldout,
    ):
        for deb in sorted(debs.glob("*.deb")):
            root = _unpack(deb, work)
            package, version = _deb_field(deb, "Package"), _deb_field(deb, "Version")
            documents = text_bytes = 0
            for document in read_documents(package, root, seen):
                target = heldout if is_held_out(document) else train
                target.write(json.dumps(asdict(document)) + "\n")
                documents, text_bytes = documents + 1, text_bytes + len(document.text.encode())
            print(package, version, documents, text_bytes, flush=True)
            if documents:
                licences = read_licences(root, package)
                sources.append(Source(package, version, licences, documents, text_bytes))
    rows = json.dumps([asdict(source) for source in sources], indent=1)
    (out / "sources.json").write_text(rows + "\n", encoding="utf-8")
    return sources


def read_documents(package: str, root: Path, seen: set[bytes]) -> Iterator[Document]:
    """Yield the prose of each readable file under `root`; `seen` holds digests of paragraphs."""
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink() or not path.is_file() or SKIPPED_PATH.search(name):
            continue
        if name.endswith(HTML_ENDINGS):
            paragraphs = html_paragraphs(_read(path))
        elif name.endswith(TEXT_ENDINGS) or "." not in path.name[-5:]:
            paragraphs = text_paragraphs(_read(path))
        else:
            continue
        kept = [
            text for text in map(normalise, paragraphs) if is_prose(text) and _is_new(text, seen)
        ]
        for text in _in_pieces(kept):
            yield Document(package, name, text)


def is_held_out(document: Document) -> bool:
    """Whether a document belongs to the held-out set: decided by a digest of its name alone."""
    digest = hashlib.sha256(f"{document.package}/{document.path}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 1000 < HELDOUT_IN_1000


def html_paragraphs(markup: bytes) -> Iterator[str]:
    """Yield the text of each innermost paragraph-like element, code and tables left out."""
    try:
        tree = lxml.html.document_fromstring(markup, parser=lxml.html.HTMLParser(encoding="utf-8"))
    except (lxml.etree.LxmlError, ValueError):
        return
    lxml.etree.strip_elements(tree, *DROPPED, with_tail=False)
    for division in tree.iterfind(".//div[@class='para']"):
        division.tag = "p"
    for element in tree.iter(*BLOCKS):
        if next(element.iterdescendants(*BLOCKS), None) is None:
            yield str(element.text_content())


def text_paragraphs(raw: bytes) -> Iterator[str]:
    """Yield the paragraphs of a plain text or reStructuredText file without directives and code."""
    text = raw.decode("utf-8", errors="replace")
    text = re.sub(r":[a-z:]+:`~?([^`<]*?)(?: <[^`>]*>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+) <[^`>]*>`_+", r"\1", text).replace("``", "").replace("**", "")
    for block in re.split(r"\n\s*\n", text):
        if not re.search(r"^(\.\. |[=\-~^*#]{3}|\s*[$>#|+]|\s+:\w+:)", block, re.MULTILINE):
            yield block


def normalise(text: str) -> str:
    """Bring one paragraph to one line of plain characters."""
    return " ".join(unicodedata.normalize("NFKC", text.translate(PLAIN)).split())


def is_prose(text: str) -> bool:
    """Whether a paragraph looks like English sentences rather than code, a table or a list."""
    if len(text) < MIN_PARAGRAPH_CHARS or not text.isascii():
        return False
    letters = sum(map(str.isalpha, text)) + text.count(" ")
    words = text.lower().split()
    common = sum(word.strip('.,;:()"') in STOP_WORDS for word in words)
    return (
        letters >= 0.88 * len(text)
        and common >= 0.18 * len(words)
        and len(text) <= 9 * len(words)
        and text[-1] in ".:!?)\"'"
    )


def read_licences(root: Path, package: str) -> tuple[str, ...]:
    """Read the licence names that the package's copyright file states."""
    paths = [root / f"usr/share/doc/{package}/copyright", *root.glob("usr/share/doc/*/copyright")]
    text = "\n".join(
        path.read_text(errors="replace", encoding="utf-8") for path in paths[:2] if path.is_file()
    )
    stated = re.findall(r"^License:[ \t]*(\S.*)$", text, re.MULTILINE)
    named = [name for name in stated if len(name.split()) <= 5 and name[0].isalnum()]
    known = (
        r"\b(?:GFDL|L?GPL|AGPL|BSD|MIT|Expat|Apache|Artistic|CC-BY-SA|public domain"
        r"|GNU General Public|GNU Free Documentation|Python Software Foundation License)\b"
    )
    free_text = re.findall(known, text)
    return tuple(sorted({name.strip()[:80] for name in named or free_text})) or (
        "see copyright file",
    )


def _in_pieces(paragraphs: list[str]) -> Iterator[str]:
    piece: list[str] = []
    length = 0
    for paragraph in paragraphs:
        piece.append(paragraph)
        length += len(paragraph) + 1
        if length > MAX_DOCUMENT_CHARS:
            yield "\n".join(piece)
            piece, length = [], 0
    if length >= MIN_DOCUMENT_CHARS:
        yield "\n".join(piece)


def _is_new(text: str, seen: set[bytes]) -> bool:
    key = hashlib.md5(re.sub(r"[^a-z]", "", text.lower()).encode(), usedforsecurity=False).digest()
    if key in seen:
        return False
    seen.add(key)
    return True


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            return gzip.decompress(raw)
        except (OSError, EOFError):
            return b""
    return b"" if b"\0" in raw[:4096] else raw


def _unpack(deb: Path, work: Path) -> Path:
    root = work / deb.stem
    if not root.exists():
        root.mkdir(parents=True)
        subprocess.run(["dpkg", "-x", str(deb), str(root)], check=True)
    return root


def _deb_field(deb: Path, field: str) -> str:
    command = ["dpkg-deb", "--field", str(deb), field]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
