"""Prose is kept, code and tables are not, and documents are held out by name."""

from studies.demo.build.corpus import (
    Document,
    html_paragraphs,
    is_held_out,
    is_prose,
    normalise,
    text_paragraphs,
)

SENTENCE = "The server reads its configuration when it is started and again when it is told to."


def test_sentences_are_prose_and_code_is_not() -> None:
    assert is_prose(SENTENCE)
    assert not is_prose(
        "int main(int argc, char **argv) { return run(argc, argv, NULL); } /* run */"
    )
    assert not is_prose(
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda nu xi pi rho."
    )
    assert not is_prose("Short text.")


def test_markup_gives_innermost_paragraphs_without_code() -> None:
    markup = b"<ul><li><p>One <code>x</code>.</p><pre>y = 1</pre></li><li>Two.</li></ul>"
    assert list(html_paragraphs(markup)) == ["One x.", "Two."]


def test_text_loses_its_directives() -> None:
    raw = b".. note:: hidden\n\nA :ref:`link <target>` and ``code``\nover lines.\n\n    $ command\n"
    assert [normalise(text) for text in text_paragraphs(raw)] == ["A link and code over lines."]


def test_a_documents_part_depends_on_its_name_alone() -> None:
    documents = [Document("package", f"file{n}.html", SENTENCE) for n in range(4000)]
    held_out = sum(map(is_held_out, documents))
    assert 30 <= held_out <= 130
    assert is_held_out(documents[0]) == is_held_out(Document("package", "file0.html", "other"))
