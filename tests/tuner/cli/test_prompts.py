"""Any prompts survive a study: from JSON lines to the exported YAML, which others read."""

import json
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tuner.conftest import Tune
from tuner.deployment.document import load_deployment

# what Unicode can hold, halves of surrogate pairs too, with the troublesome often
ODD = st.text(
    st.sampled_from("\x85\u2028\u2029\ufeff\r\n\t \x00\x1b'\"\\#:-|שa\u202e\U0001f600\ud83d")
)
TEXTS = st.lists(st.text(max_size=40) | st.text(st.characters(), max_size=40) | ODD, min_size=1)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=TEXTS, plain=st.booleans())
@example(texts=["Wait\x85 what is a queue?", "one\u2028two", "\ufeffmark", "\x00"], plain=False)
@example(texts=["half \ud83d"], plain=True)
def test_prompts_survive_a_study_or_are_refused_before_it(
    tune: Tune, folder: Path, texts: list[str], plain: bool
):
    """plain: characters stand in the file as they are, which halves of pairs cannot."""
    lines = "".join(json.dumps({"prompt": text}, ensure_ascii=not plain) + "\n" for text in texts)
    (folder / "p.jsonl").write_bytes(lines.encode(errors="surrogatepass"))
    definition = yaml.safe_load((folder / "study.yaml").read_text())
    definition.pop("workload")
    definition.update(name="texts", prompts="p.jsonl", trials=1, confirm_rounds=0)
    (folder / "own.yaml").write_text(yaml.safe_dump(definition))
    store = f"sqlite:///{folder}/{len(list(folder.glob('*.db')))}.db"
    output = folder / "out.yaml"
    output.unlink(missing_ok=True)
    done = tune("--definition", "own.yaml", "--storage", store, "-o", "out.yaml")
    if not all(text and _is_text(text) for text in texts):
        assert (done.code, output.exists()) == (2, False)
        assert "line " in done.err
        return
    assert done.code == 0, done.err
    assert load_deployment(output).workload.prompts == texts
    assert tune("compare", "out.yaml", "out.yaml").code == 0


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
