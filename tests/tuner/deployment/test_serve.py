"""`tune deploy` with the fake engine: canary, refusal, neighbours, telemetry with drift."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.errors import InfeasibleError
from engine.facts.card_memory import CONTEXT_BYTES
from engine.memory.plan import resolve
from tests.fakes.fake_engine import facts_of
from tests.tuner.conftest import Outcome, Tune
from tests.tuner.deployment.test_verify import rewrite
from tuner.deployment import canary
from tuner.deployment.document import load_deployment
from tuner.deployment.serve import check_memory, check_origins, read_api_key
from tuner.errors import UsageError
from tuner.folders import default_storage
from tuner.processes.secrets import KEY_VARIABLE
from tuner.store.database import open_read_only
from tuner.store.repository import Store
from tuner.store.snapshots import TelemetrySnapshot

FILE = "expertune-small.yaml"
Change = Callable[[Any], None]


def scale(measured: Any, factor: float) -> None:
    """Let the recorded speeds be so many times better."""
    for name in ("value", "low", "high"):
        measured["output_tps"][name] *= factor
        measured["tpot_ms"][name] /= factor


def flatter_own(data: Any) -> None:
    scale(data["measured"], 1.5)


def flatter_all(data: Any) -> None:
    for measured in (data["measured"], *(one["measured"] for one in data["neighbours"])):
        scale(measured, 1.5)


def kept() -> tuple[TelemetrySnapshot, ...]:
    return Store(open_read_only(default_storage())).telemetry()


def refused(done: Outcome) -> bool:
    return done.code == 1 and "serving" not in done.out and not kept()


def test_a_config_that_holds_is_served_and_said_in_one_document(tune: Tune, study: Path):
    done = tune("deploy", FILE, "--port", "0", "--json")
    assert done.code == 0, done.err
    assert done.document["url"] == "http://127.0.0.1:8123/v1"
    assert done.document["model"] == "some-moe"
    assert done.document["canary"]["holds"] is True
    assert len(done.document["canary"]["verdicts"]) == 2
    assert "2 finished, 600 tokens" in done.err
    assert "serving 'mine' (trial" in tune("deploy", FILE, "--name", "mine").out


def test_a_key_goes_on_as_its_digest_only(tune: Tune, study: Path):
    key = "k" * 16
    (study / "key").write_text(f"{key}\n")
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert read_api_key(study / "key", {}) == digest
    assert read_api_key(None, {KEY_VARIABLE: key}) == digest
    assert read_api_key(None, {}) == read_api_key(None, {KEY_VARIABLE: ""}) == ""
    done = tune("deploy", FILE, "--api-key-file", "key", "--host", "0.0.0.0")
    assert done.code == 0, done.err
    assert "anyone who reaches" not in done.err
    assert key not in done.out + done.err
    assert "anyone who reaches 0.0.0.0 can use" in tune("deploy", FILE, "--host", "0.0.0.0").err


@pytest.mark.parametrize("key", ["", "short", "k" * 513, "sixteen letters !", "k" * 15 + "\xe9"])
def test_a_key_that_can_be_guessed_or_sent_by_no_header_is_refused(tmp_path: Path, key: str):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    with pytest.raises(UsageError, match="key: an API key is 16 to 512 letters") as raised:
        read_api_key(tmp_path / "key", {KEY_VARIABLE: "k" * 16})
    assert not key or key not in str(raised.value)


def test_telemetry_is_kept_with_its_drift_and_quiet_windows_are_not(tune: Tune, study: Path):
    tune("deploy", FILE)
    alike, other = kept()
    trial = load_deployment(study / FILE).provenance.trial
    assert alike.deployment == f"small/{trial}"
    assert alike.payload["output_tokens"] == 300
    assert alike.payload["drift"]["retune"] is False
    assert alike.payload["drift"]["routing"] == pytest.approx(0)
    assert other.payload["drift"]["routing"] == pytest.approx(15 / 16)
    assert other.payload["drift"]["retune"] is True
    assert "event" not in other.payload


def test_outside_its_band_it_warns_and_serves(tune: Tune, study: Path):
    rewrite(study / FILE, flatter_own)
    done = tune("deploy", FILE, "--json")
    assert done.code == 0
    assert "does not hold here: trial" in done.err
    assert "output_tps is" in done.document["canary"]["problem"]


def test_strict_refuses_what_is_outside_its_band(tune: Tune, study: Path):
    rewrite(study / FILE, flatter_own)
    done = tune("deploy", FILE, "--strict")
    assert refused(done)
    assert "the config does not do here what the file says" in done.err
    assert "tune again on this machine" in done.err


@pytest.mark.parametrize("policy", ["--strict", "--walk"])
def test_a_busy_machine_refuses_to_tell_and_is_no_reason_for_a_neighbour(
    policy: str, tune: Tune, study: Path, misbehave
):
    misbehave(("busy", "measure", None))
    rewrite(study / FILE, flatter_own)
    done = tune("deploy", FILE, policy)
    assert (done.code, "serving" in done.out, kept()) == (4, False, ())
    assert "busy machine" in done.err
    served = tune("deploy", FILE, "--json")
    assert served.code == 0
    assert "busy machine" in served.err
    assert served.document["canary"]["outcome"] == "busy"


def test_strict_serves_what_is_faster_and_says_so(tune: Tune, study: Path):
    rewrite(study / FILE, lambda data: scale(data["measured"], 0.5))
    done = tune("deploy", FILE, "--strict", "--json")
    assert done.code == 0, done.err
    assert "% faster" in done.err
    assert done.document["canary"]["outcome"] == "faster"


def test_walk_takes_the_neighbour_that_holds(tune: Tune, study: Path):
    deployment = load_deployment(rewrite(study / FILE, flatter_own))
    assert deployment.neighbours
    done = tune("deploy", FILE, "--walk", "--json")
    assert done.code == 0, done.err
    assert done.document["canary"]["trial"] == deployment.neighbours[0].trial
    assert done.document["canary"]["holds"] is True
    assert kept()[0].deployment == f"small/{deployment.neighbours[0].trial}"


def test_walk_refuses_where_none_holds(tune: Tune, study: Path):
    rewrite(study / FILE, flatter_all)
    done = tune("deploy", FILE, "--walk")
    assert refused(done)
    assert "neither the config nor a neighbour does" in done.err


def test_walk_passes_a_config_that_does_not_fit(tune: Tune, study: Path, misbehave):
    misbehave(("error", "configure", 1))
    done = tune("deploy", FILE, "--walk", "--json")
    assert done.code == 0, done.err
    assert "the fake engine found no memory" in done.err
    assert done.document["canary"]["trial"] == load_deployment(study / FILE).neighbours[0].trial


@pytest.mark.usefixtures("processes")
def test_a_canary_that_takes_too_long_is_ended_and_the_config_served_by_a_new_process(
    tune: Tune, study: Path, misbehave, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(canary, "LIMIT_S", 0.5)
    misbehave(("hang", "measure", 1))
    done = tune("deploy", FILE, "--json")
    assert done.code == 0, done.err
    assert "was not done" in done.document["canary"]["problem"]
    counts = json.loads((study / "counts.json").read_text())
    assert (counts["open"], counts["configure"], counts["serve"]) == (2, 2, 1)


def test_more_memory_than_the_budget_is_a_problem(tune: Tune, study: Path, misbehave):
    misbehave(("over_budget", "measure", 1))
    done = tune("deploy", FILE, "--strict")
    assert done.code == 1
    assert "measured from outside (fake)" in done.err


@pytest.mark.parametrize(
    ("change", "words", "code", "says"),
    [
        (None, ("--strict", "--walk"), 2, "give one of them"),
        (lambda data: data["model"].update(fingerprint="0" * 16), (), 2, "fingerprint"),
        (lambda data: data["engine"]["budget"].update(vram_bytes=10**6), (), 3, "need at least"),
        (None, ("--host", "0.0.0.0"), 0, "anyone who reaches 0.0.0.0"),
    ],
)
def test_what_is_checked_before_it_serves(
    tune: Tune, study: Path, change: Change | None, words: tuple[str, ...], code: int, says: str
):
    if change is not None:
        rewrite(study / FILE, change)
    done = tune("deploy", FILE, *words)
    assert done.code == code
    assert says in done.err


def test_a_server_that_fails_is_one_sentence(tune: Tune, study: Path, misbehave):
    misbehave(("error", "serve", 1))
    done = tune("deploy", FILE)
    assert done.code == 1
    assert done.err.strip().splitlines()[-1] == "tune: the fake engine found no memory"


def cards(*free_bytes: int) -> list[dict[str, Any]]:
    """Equal cards as the worker reports them."""
    return [
        {"index": n, "name": "card", "uuid": f"GPU-{n}", "free_bytes": free}
        for n, free in enumerate(free_bytes)
    ]


def test_the_card_that_is_visible_is_asked_what_is_free(monkeypatch: pytest.MonkeyPatch):
    # gpuopenanalytics/pynvml#28: NVML's number 0 is the card that is hidden
    facts, config = facts_of("m"), EngineConfig().overlay({"device.name": "cuda:0"})
    found = {"ram_available_bytes": 10**12, "gpus": cards(10**6, 10**12)}
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    check_memory(config, facts, found)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-0")
    with pytest.raises(InfeasibleError, match="cuda:0 has 1 MB free"):
        check_memory(config, facts, found)


def test_the_context_of_an_open_card_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    facts, config = facts_of("m"), EngineConfig().overlay({"device.name": "cuda:0"})
    memory = resolve(config, facts).memory
    rest = memory.total_bytes - CONTEXT_BYTES
    check_memory(config, facts, {"gpus": cards(rest)})
    with pytest.raises(InfeasibleError, match="free: end what else runs there"):
        check_memory(config, facts, {"gpus": cards(rest - 1)})


def test_memory_that_is_not_free_is_said_before_anything_is_allocated():
    facts = facts_of("m")
    config = EngineConfig().overlay({"device.name": "cuda:1"})
    gpus = cards(10**12, 10**6)
    with pytest.raises(InfeasibleError, match="cuda:1 has 1 MB free"):
        check_memory(config, facts, {"ram_available_bytes": 10**12, "gpus": gpus})
    on_cpu = config.overlay({"device.name": "cpu"})
    check_memory(on_cpu, facts, {"ram_available_bytes": 10**12, "gpus": gpus})
    with pytest.raises(InfeasibleError, match="cpu has 1 MB free"):
        check_memory(on_cpu, facts, {"ram_available_bytes": 10**6, "gpus": gpus})
    check_memory(config, facts, {})


@pytest.mark.parametrize("origin", ["*", "null", "https://a.example", "http://localhost:3000"])
def test_an_origin_is_what_a_browser_sends(origin: str):
    assert check_origins([origin]) == (origin,)


@pytest.mark.parametrize("origin", ["", "localhost:3000", "https://a.example/", "http://A.example"])
def test_what_no_browser_sends_is_no_origin(tune: Tune, study: Path, origin: str):
    done = tune("deploy", FILE, "--cors-origin", origin)
    assert done.code == 2
    assert "without a path (https://example.org" in done.err
