"""A fraction of the kv_cache in a running engine: bounded, numbered by the true length, visible to
scores, and nothing else is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from engine.config.settings import EngineConfig
from engine.device.cpu import CpuDevice
from engine.errors import ConfigError, EngineError
from engine.evaluate.divergence import diverge
from engine.evaluate.scoring import Continuation, score
from engine.kv_cache.merged_layer import AttentionWatch, MergedLayer
from engine.layout.kv import SINK_TOKENS, drop_index, kept_tokens
from engine.run.engine import Engine
from engine.run.micro_batch import MicroBatch
from tests.engine.families import VOCABULARY, save_tiny

BASE = {
    "compute.dtype": "float32",
    "cache.expert_bytes": "100%",
    "prefill.chunk_tokens": 32,
    "kv.max_tokens": 96,
}
FAMILIES = ("qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoehybrid")
PROMPT_TOKENS, STEPS = 72, 12


def configure(engine: Engine, **settings: object) -> None:
    engine.configure(EngineConfig().overlay({**BASE, **settings}))


def prompt(size: int = 1, seed: int = 7, tokens: int = PROMPT_TOKENS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (size, tokens), generator=generator)


def decode(engine: Engine, batches: list[MicroBatch], steps: int = STEPS) -> torch.Tensor:
    """Logits after the prompts and of given tokens, [count * B, 1 + steps, V]."""
    rows = [torch.cat(engine.prefill(batches))]
    for number in range(steps):
        for batch in batches:
            batch.tokens = torch.full((batch.tokens.shape[0], 1), 5 + 3 * number)
        rows.append(torch.cat(engine.forward(batches, "decode")))
    return torch.cat(rows, dim=1).clone()


@pytest.fixture(scope="module", params=FAMILIES)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    engine = Engine(folder, CpuDevice(), folder / "cache")
    yield engine
    engine.close()


def test_a_share_loses_something_and_stays_bounded_in_every_kind_of_family(family: Engine) -> None:
    configure(family)
    exact = decode(family, [MicroBatch(prompt())])
    configure(family, **{"kv.keep_fraction": 0.5})
    batch = MicroBatch(prompt())
    half = decode(family, [batch])
    seen = PROMPT_TOKENS + STEPS
    merged = [layer for layer in batch.kv.layers if isinstance(layer, MergedLayer)]
    assert len(merged) == family.facts.kv_plain_layers
    for layer in merged:
        assert layer.keys.shape[2] <= kept_tokens(0.5, seen) + 1
        assert layer.values.shape[2] == layer.keys.shape[2]
        assert layer.get_seq_length() == seen
    whole = len(merged) == family.facts.layers
    assert any("kv.keep_fraction = 0.5" in note for note in family.live.notes) == (not whole)
    spread = float((half - exact).abs().mean() / exact.std())
    assert 1e-4 < spread < 1


def test_a_layer_that_keeps_all_it_sees_changes_no_logit_but_by_rounding(family: Engine) -> None:
    configure(family)
    exact = decode(family, [MicroBatch(prompt())], 3)
    configure(family, **{"kv.keep_fraction": 0.999})  # of 75 tokens, rounded up: all
    batch = MicroBatch(prompt())
    watched = decode(family, [batch], 3)
    assert any(isinstance(layer, MergedLayer) for layer in batch.kv.layers)
    torch.testing.assert_close(watched, exact)


def test_all_kept_is_transformers_own_cache_and_the_model_as_it_was_built(engine: Engine) -> None:
    configure(engine)
    batch = MicroBatch(prompt())
    exact = decode(engine, [batch])
    built = engine.model.model.config._attn_implementation
    configure(engine, **{"kv.keep_fraction": 0.5})
    assert engine.model.model.config._attn_implementation != built
    configure(engine, **{"kv.keep_fraction": 1.0})
    assert engine.model.model.config._attn_implementation == built
    again = MicroBatch(prompt())
    assert torch.equal(decode(engine, [again]), exact)
    assert [type(layer) for layer in again.kv.layers] == [type(layer) for layer in batch.kv.layers]
    assert not any(isinstance(layer, MergedLayer) for layer in again.kv.layers)


def test_micro_batches_of_several_sequences_are_merged_each_by_itself(engine: Engine) -> None:
    configure(engine, **{"kv.keep_fraction": 0.4, "batch.count": 2, "batch.size": 2})
    prompts = [prompt(2, seed) for seed in (1, 2)]
    together = decode(engine, [MicroBatch(tokens) for tokens in prompts])
    alone = [
        decode(engine, [MicroBatch(tokens[row : row + 1])]) for tokens in prompts for row in (0, 1)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_while_decoding_the_position_at_one_index_goes(engine: Engine) -> None:
    configure(engine, **{"kv.keep_fraction": 0.5, "prefill.chunk_tokens": 96})
    batch = MicroBatch(prompt())
    engine.prefill([batch])
    layer = batch.kv.layers[1]
    kept = kept_tokens(0.5, PROMPT_TOKENS)
    assert layer.keys.shape[2] == kept
    expected = layer.keys[0, 0, :, 0].tolist()
    index = drop_index(kept)
    assert index == kept - 25
    for number in range(STEPS):
        batch.tokens = torch.tensor([[9 + number]])
        if len(expected) > kept_tokens(0.5, PROMPT_TOKENS + number):
            del expected[index]
        engine.forward([batch], "decode")
        expected.append(float(layer.keys[0, 0, -1, 0]))
        assert layer.keys[0, 0, :, 0].tolist() == expected
    assert len(expected) < kept + STEPS


def test_new_tokens_are_numbered_from_the_true_length(engine: Engine) -> None:
    configure(engine, **{"kv.keep_fraction": 0.25, "prefill.chunk_tokens": 96})
    embedding = engine.model.model.model.rotary_emb
    given = []
    handle = embedding.register_forward_hook(
        lambda module, arguments, keywords, output: given.append(
            (keywords.get("position_ids", arguments[-1])).tolist()
        ),
        with_kwargs=True,
    )
    decode(engine, [MicroBatch(prompt())], 2)
    handle.remove()
    assert given[-2:] == [[[PROMPT_TOKENS]], [[PROMPT_TOKENS + 1]]]


def test_a_second_chunk_sees_its_own_tokens_causally_behind_a_merged_first(engine: Engine) -> None:
    """The last token of a chunk must not matter to those before it."""
    rows = []
    for last in (11, 12):
        configure(engine, **{"kv.keep_fraction": 0.5})
        batch = MicroBatch(prompt(tokens=32))
        engine.prefill([batch])
        second = prompt(seed=9, tokens=20)
        second[0, -1] = last
        batch.tokens, batch.keep = second, 20
        rows.append(engine.forward([batch], "prefill")[0].clone())
    torch.testing.assert_close(rows[0][:, :-1], rows[1][:, :-1])
    assert not torch.allclose(rows[0][:, -1], rows[1][:, -1])


def test_keys_and_values_take_what_the_memory_equation_says(engine: Engine) -> None:
    taken = []
    for ratio in (1.0, 0.5, 0.25):
        configure(engine, **{"kv.keep_fraction": ratio})
        assert engine.memory is not None
        batch = MicroBatch(prompt())
        decode(engine, [batch])
        held = [t for layer in batch.kv.layers for t in (layer.keys, layer.values)]
        taken.append(sum(t.untyped_storage().nbytes() for t in held))
        assert taken[-1] <= engine.memory.kv_bytes
    assert taken[2] < taken[1] < taken[0]


def test_scores_see_merged_keys_and_values_and_equal_decoding(engine: Engine) -> None:
    text = tuple(prompt()[0].tolist())
    wanted = Continuation(text[:60], text[60:66])
    configure(engine)
    exact = score(engine, [wanted])[0].log_likelihood
    configure(engine, **{"kv.keep_fraction": 0.25})
    own = score(engine, [wanted, Continuation(text[:64], text[64:66])])[0].log_likelihood
    batch = MicroBatch(torch.tensor([text[:60]]))
    logits = engine.prefill([batch])[0]
    total = 0.0
    for token in text[60:66]:
        total += float(torch.log_softmax(logits[0, -1].float(), -1)[token])
        batch.tokens = torch.tensor([[token]])
        logits = engine.forward([batch], "decode")[0]
    assert own == pytest.approx(total, abs=1e-4)
    assert abs(own - exact) > 1e-3


def test_divergence_grows_as_less_is_kept_and_the_prompt_does_not_count(
    engine: Engine, tmp_path: Path
) -> None:
    tokens = prompt()[0].tolist()
    configure(engine)
    diverge(engine, tokens, tmp_path, "decode", reference=True)
    found = []
    for ratio in (1.0, 0.75, 0.25):
        configure(engine, **{"kv.keep_fraction": ratio})
        divergence = diverge(engine, tokens, tmp_path, "decode", reference=False)
        assert divergence is not None
        found.append(divergence.kld_mean)
    assert abs(found[0]) < 1e-7
    assert found[0] < found[1] < found[2]


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"kv.bits": 8}, "kv.keep_fraction = 0.5 and kv.bits = 8.*set kv.bits to 16"),
        ({"kv.placement": "host"}, "kv.keep_fraction = 0.5 and kv.placement = host.*to device"),
    ],
)
def test_what_a_merged_layer_cannot_be_together_with_is_refused(
    engine: Engine, other: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configure(engine, **{"kv.keep_fraction": 0.5}, **other)


def test_a_family_with_a_cache_of_its_own_is_refused_by_name(tmp_path: Path) -> None:
    engine = Engine(save_tiny("minimax", tmp_path / "model"), CpuDevice(), tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"kv\.keep_fraction = 0\.5 does not suit 'minimax'"):
        configure(engine, **{"kv.keep_fraction": 0.5})
    engine.close()


def test_attention_that_cannot_be_watched_is_an_error_and_no_silent_loss() -> None:
    layer = MergedLayer(0.5, AttentionWatch())
    states = torch.zeros(1, 1, SINK_TOKENS, 2)
    layer.update(states, states)
    with pytest.raises(EngineError, match=r"set kv\.keep_fraction to 1"):
        layer.update(states, states)
