"""The search space: which choices there are, and what is said before anything runs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import InfeasibleError
from engine.facts.model import ModelFacts
from engine.layout.prequantized import PrequantizedFormat
from engine.precision.allocate import save_sensitivities, sensitivities_path
from tests.fakes.fake_engine import facts_of
from tests.fakes.study import BUDGET_BYTES, TIGHT_BYTES
from tuner.definition.policies import load_policy
from tuner.definition.study import StudyDefinition
from tuner.errors import DefinitionError, InfeasibleStudyError
from tuner.folders import cache_folder
from tuner.search.candidates import Candidates
from tuner.search.space import SearchSpace, build_space
from tuner.study import run

WORK = Workload("w", ("a", "b"), sequences=4)


@pytest.fixture(autouse=True)
def no_products_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever processor this is."""
    monkeypatch.setattr("tuner.search.space.multiplies_bytes", lambda: False)


def space_of(
    facts: ModelFacts | None = None, vram_bytes: int = BUDGET_BYTES, **fields: Any
) -> SearchSpace:
    definition = StudyDefinition.model_validate(
        {"model": "m", "budget": {"vram_bytes": vram_bytes}, **fields}
    )
    return build_space(definition, facts or facts_of("m"), WORK)


def choices(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    return {parameter.name: parameter.choices for parameter in space.parameters}


def test_searches_the_four_settings_by_default():
    found = choices(space_of())
    assert list(found) == [
        "cache.expert_bytes", "prefetch.depth", "precision.bits", "batch.count",
    ]  # fmt: skip
    assert found["precision.bits"] == (16, 8, 4, 2)
    assert "auto" in found["cache.expert_bytes"]


@pytest.mark.parametrize(
    ("device", "prompt_tokens", "default", "searched"),
    [
        ("cpu", 3000, 256, None),
        ("cuda", 64, 256, None),
        ("cuda", 600, 1024, (256, 1024)),
        ("cuda", 3000, 2048, (256, 1024, 2048, 4096)),
    ],
)
def test_long_prompts_behind_a_link_are_read_in_long_chunks(
    device: str, prompt_tokens: int, default: int, searched: tuple[int, ...] | None
):
    definition = StudyDefinition.model_validate(
        {"model": "m", "budget": {"vram_bytes": 10**9}, "device": device}
    )
    facts = replace(facts_of("m"), max_positions=8192)
    work = replace(WORK, prompt_tokens=prompt_tokens)
    space = build_space(definition, facts, work)
    assert choices(space).get("prefill.chunk_tokens") == searched
    assert space.config(space.default()).prefill.chunk_tokens == default


def test_activations_of_8_bits_are_searched_where_bytes_are_multiplied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tuner.search.space.multiplies_bytes", lambda: True)
    space = space_of()
    assert choices(space)["precision.activation_bits"] == (16, 8)
    assert space.default()["precision.activation_bits"] == 16
    point = {**space.default(), "precision.activation_bits": 8}
    assert space.resolve(point) == space.resolve(space.default()), "16 bits are no codes"
    four = space.resolve({**point, "precision.bits": 4})
    assert four.config.precision.activation_bits == 8
    definition = StudyDefinition.model_validate({"model": "m", "budget": {"vram_bytes": 10**9}})
    behind_a_link = build_space(definition, facts_of("m"), WORK, "cuda:0")
    assert "precision.activation_bits" not in choices(behind_a_link)


def test_a_study_has_room_beside_the_context_that_was_measured():
    budget = BUDGET_BYTES + 300_000_000
    definition = StudyDefinition.model_validate({"model": "m", "budget": {"vram_bytes": budget}})
    with pytest.raises(InfeasibleStudyError):
        build_space(definition, facts_of("m"), WORK, "cuda:0")
    space = build_space(definition, facts_of("m"), WORK, "cuda:0", 250_000_000)
    assert space.resolve(space.default()).config.device.context_bytes == 256_000_000


@pytest.mark.parametrize(
    ("device", "embedding_bytes", "engine", "place"),
    [
        ("cuda:0", 1_000_000, {}, "host"),
        ("cuda:0", 1_000_000, {"placement.embeddings": "device"}, "device"),
        ("cuda:0", 0, {}, "device"),  # the head is the same table
        ("cpu", 1_000_000, {}, "device"),
        ("emulated:laptop_8gb", 1_000_000, {}, "device"),
    ],
)
def test_embeddings_lie_in_ram_beside_a_card(
    device: str, embedding_bytes: int, engine: dict[str, str], place: str
):
    definition = StudyDefinition.model_validate(
        {"model": "m", "budget": {"vram_bytes": 10**10}, "engine": engine}
    )
    facts = replace(facts_of("m"), embedding_bytes=embedding_bytes)
    assert build_space(definition, facts, WORK, device).base.placement.embeddings == place


def test_a_study_that_goes_on_keeps_the_context_it_was_planned_with():
    definition = StudyDefinition.model_validate({"model": "m", "budget": {"vram_bytes": 10**10}})
    session: Any = SimpleNamespace(
        facts=facts_of("m"), opened_device="cuda:0", context_bytes=300_000_000
    )
    trials: list[Any] = [
        SimpleNamespace(config=None),
        SimpleNamespace(config={"device": {"name": "cuda:0", "context_bytes": 256_000_000}}),
    ]
    assert run._space(definition, session, WORK).base.device.context_bytes == 304_000_000
    assert run._space(definition, session, WORK, trials).base.device.context_bytes == 256_000_000


def test_a_quantized_checkpoint_is_searched_from_as_it_was_published():
    facts = replace(facts_of("m"), prequantized=PrequantizedFormat("fp8", 128, 128))
    space = space_of(facts)
    assert choices(space)["precision.bits"] == ("prequantized", 16, 8, 4, 2)
    config, _ = space.resolve(space.default())
    assert (config.precision.bits, config.precision.prequantized) == (8, True)


def test_a_share_of_keys_and_values_can_be_searched_where_layers_are_plain():
    space = {"kv.keep_fraction": [1.0, 0.5]}
    found = space_of(vram_bytes=BUDGET_BYTES + 10**7, space=space)
    assert choices(found)["kv.keep_fraction"] == (1.0, 0.5)
    config, memory = found.resolve({**found.default(), "kv.keep_fraction": 0.5})
    assert config.kv.keep_fraction == 0.5
    assert memory.kv_bytes < found.resolve(found.default())[1].kv_bytes
    none_plain = replace(facts_of("m"), kv_plain_layers=0)
    assert choices(space_of(none_plain, space=space))["kv.keep_fraction"] == (1.0,)


def test_choices_that_never_fit_are_left_out():
    found = choices(space_of(vram_bytes=TIGHT_BYTES))
    assert 16 not in found["precision.bits"]
    assert 4 not in found["batch.count"]


def test_nothing_fits_names_the_smallest_budget_and_that_budget_works():
    with pytest.raises(InfeasibleStudyError) as caught:
        space_of(vram_bytes=1_000_000)
    smallest = caught.value.smallest_bytes
    assert smallest is not None
    assert space_of(vram_bytes=smallest).size > 0
    with pytest.raises(InfeasibleStudyError):
        space_of(vram_bytes=smallest - 1)


def test_depth_and_predictor_are_one_decision():
    space = space_of()
    point = space.default()
    assert space.config({**point, "prefetch.depth": 0}).prefetch.predictor == "none"
    assert space.config({**point, "prefetch.depth": 2}).prefetch.predictor == "next_gate"


def test_a_model_without_next_gate_searches_no_depth():
    facts = facts_of("m")
    blind = ModelFacts.from_json({**facts.to_json(), "predictors": ["none"]})
    assert choices(space_of(blind))["prefetch.depth"] == (0,)


def test_the_default_is_all_that_fits_at_the_most_bits_that_fit():
    assert space_of().default() == {
        "cache.expert_bytes": "auto", "prefetch.depth": 0, "precision.bits": 16, "batch.count": 1,
    }  # fmt: skip
    assert space_of(vram_bytes=TIGHT_BYTES).default()["precision.bits"] == 8


@pytest.mark.parametrize("budget", [None, TIGHT_BYTES])
def test_the_default_among_given_cache_sizes_is_the_largest_that_fits(budget: int | None):
    sizes = ["25%", "12.5%", "100%", "50%"]
    options = {} if budget is None else {"vram_bytes": budget}
    space = space_of(space={"cache.expert_bytes": sizes}, **options)
    point = space.default()
    fitting = [s for s in sizes if space.fits({**point, "cache.expert_bytes": s})]
    assert point["cache.expert_bytes"] == max(fitting, key=lambda s: float(s[:-1]))


def test_the_definition_fixes_and_adds_settings():
    found = choices(space_of(engine={"precision.bits": 4}, space={"io.threads": [1, 2]}))
    assert "precision.bits" not in found
    assert found["io.threads"] == (1, 2)


def test_a_workload_longer_than_the_model_is_refused():
    with pytest.raises(DefinitionError, match="2048"):
        build_space(
            StudyDefinition(model="m"), facts_of("m"), Workload("w", ("a",), prompt_tokens=5000)
        )


def test_a_plan_leaves_no_bits_to_search():
    rows = ["4"] * facts_of("m").moe_layers
    engine = {"precision.scheme": "by_layer", "precision.options.table": rows}
    assert "precision.bits" in choices(space_of())
    assert "precision.bits" not in choices(space_of(engine=engine))


def test_a_planned_precision_gets_its_table_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    facts = facts_of("m")
    planned = {"precision.scheme": "by_sensitivity", "precision.options.average_bits": 3}
    space = SearchSpace((), EngineConfig().overlay(planned), facts)
    with pytest.raises(InfeasibleError, match="--sensitivity"):
        space.resolve({})
    path = sensitivities_path(cache_folder(), facts, EngineConfig())
    losses = [{4: 0.1, 2: 1.0 + layer} for layer in range(facts.moe_layers)]
    save_sensitivities(path, losses)
    resolved, _ = space.resolve({})
    half = facts.moe_layers // 2
    assert resolved.precision.options["table"] == ["2"] * half + ["4"] * half


def test_a_policy_is_one_choice_among_others():
    space = space_of(space={"policy": ["own", "fate", "promoe"]})
    default = space.default()
    assert default["policy"] == "own"
    own = {name: value for name, value in default.items() if name != "policy"}
    assert space.config(default) == space_of().config(own)
    for name in ("fate", "promoe"):
        flat = space.config({**default, "policy": name, "prefetch.depth": 2}).flat()
        for path, value in load_policy(name).engine.items():
            if not path.startswith(("cache.options", "prefetch.options", "precision.options")):
                assert flat[path] == value, path
    deep, shallow = ({**default, "policy": "fate", "prefetch.depth": d} for d in (0, 2))
    assert space.config(deep) == space.config(shallow), "a preset's own depth holds"
    assert {c.point["policy"] for c in Candidates(space).items} == {"own", "fate", "promoe"}


def test_an_unknown_policy_names_the_nearest():
    with pytest.raises(ValueError, match=r"'fait'.*'fate'.*`own`"):
        StudyDefinition(model="m", space={"policy": ["own", "fait"]})
