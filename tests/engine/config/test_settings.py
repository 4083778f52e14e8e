"""Configurations: overlays by path, strict reading, hashes."""

from __future__ import annotations

import pytest

from engine.config.exactness import lossy_settings, sensitivity
from engine.config.settings import EngineConfig, config_paths
from engine.errors import ConfigError


def test_an_overlay_converts_text_to_the_fields_type() -> None:
    config = EngineConfig().overlay(
        {"precision.bits": "4", "transfer.chunk_bytes": "2MB", "cache.expert_bytes": "25%"}
    )
    assert config.precision.bits == 4
    assert config.transfer.chunk_bytes == 2_000_000
    assert config.cache.expert_bytes == "25%"


def test_prequantized_is_a_word_of_bits_and_a_flag_of_its_own() -> None:
    prequantized = EngineConfig().overlay({"precision.bits": "prequantized"})
    assert prequantized.precision.prequantized
    assert not prequantized.overlay({"precision.bits": 8}).precision.prequantized
    resolved = prequantized.overlay({"precision.bits": 8, "precision.prequantized": True})
    assert EngineConfig.from_dict(resolved.to_dict()) == resolved
    assert lossy_settings(resolved) != lossy_settings(resolved.overlay({"precision.bits": 8}))
    assert "precision.prequantized" not in lossy_settings(EngineConfig())


def test_a_dict_round_trips() -> None:
    config = EngineConfig().overlay({"cache.options.decay": 0.9, "batch.count": 3})
    assert EngineConfig.from_dict(config.to_dict()) == config
    assert EngineConfig.from_dict(config.to_dict()).digest() == config.digest()


def test_different_configs_have_different_digests() -> None:
    assert EngineConfig().digest() != EngineConfig().overlay({"batch.count": 2}).digest()


def test_the_crossover_belongs_to_the_quality_key_of_quantized_configs_only() -> None:
    def key(**settings: object) -> dict[str, object]:
        return lossy_settings(EngineConfig().overlay(settings))

    few, many = {"kernel.crossover_tokens": 16}, {"kernel.crossover_tokens": 128}
    assert key(**few) == key(**many)
    for quantized in ({"precision.bits": 4}, {"precision.non_expert_bits": 8}):
        assert key(**few, **quantized) != key(**many, **quantized)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("cache.expert_byte", 1, "cache.expert_bytes"),
        ("precision.bits", 5, "allowed are 16, 8, 4, 3, 2, .*prequantized"),
        ("cache.eviction", "lur", "the nearest is 'lru'"),
        ("batch.count", 0, "allowed is 1 to 256"),
        ("batch.count", 1.5, "whole number"),
        ("cache.expert_bytes", "8GBB", "not a size"),
        ("cache.expert_bytes", "140%", "at most at 100%"),
        ("nonsense", 1, "the nearest is"),
        ("precision.options.optimize", "hqq", "allowed are weighted_squares, none"),
    ],
)
def test_a_bad_setting_is_refused_with_what_is_allowed(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        EngineConfig().overlay({path: value})


def test_every_path_has_a_sensitivity_class() -> None:
    assert {sensitivity(path) for path in config_paths()} >= {"exact", "rounding", "lossy_static"}
    assert sensitivity("batch.order") == "exact"
    assert sensitivity("batch.count") == "rounding"
    assert sensitivity("precision.bits") == "lossy_static"


def test_what_fits_scales_belongs_to_the_quality_key_where_it_has_an_effect() -> None:
    def key(**values: object) -> object:
        config = EngineConfig().overlay({f"precision.{k}": v for k, v in values.items()})
        return lossy_settings(config).get("precision.options")

    fitted, plain = {"optimize": "weighted_squares"}, {"optimize": "none"}
    assert key(bits=3) == fitted
    assert key(bits=3, options=plain) == plain
    assert key(bits=8, options=plain) is None
    assert key(bits=16, low_bits=2) is None
    missed = {"decode_miss_bits": 2}
    on_miss = {"scheme": "popularity_mass", "low_bits": 2, "options": missed}
    assert key(bits=4, **on_miss) == {**missed, **fitted}


def test_bits_of_keys_and_values_are_in_the_quality_key_and_bring_the_chunk_with_them() -> None:
    exact, four = EngineConfig(), EngineConfig().overlay({"kv.bits": "4"})
    assert lossy_settings(four) != lossy_settings(exact)
    chunked = {"prefill.chunk_tokens": 64}
    assert lossy_settings(exact.overlay(chunked)) == lossy_settings(exact)
    assert lossy_settings(four.overlay(chunked)) != lossy_settings(four)
    placed = {"kv.placement": "host", "kv.max_tokens": 77}
    assert lossy_settings(four.overlay(placed)) == lossy_settings(four)
    with pytest.raises(ConfigError, match="allowed are 16, 8, 4"):
        exact.overlay({"kv.bits": 3})


def test_a_share_of_keys_and_values_is_in_the_quality_key_only_where_it_is_one() -> None:
    exact, half = EngineConfig(), EngineConfig().overlay({"kv.keep_fraction": "0.5"})
    assert "kv.keep_fraction" not in lossy_settings(exact)
    assert lossy_settings(half)["kv.keep_fraction"] == 0.5
    chunked = half.overlay({"prefill.chunk_tokens": 64})
    assert lossy_settings(chunked) != lossy_settings(half)
    for refused in (0, 1.5):
        with pytest.raises(ConfigError, match=r"kv\.keep_fraction = .*allowed is 0\.01 to 1\.0"):
            exact.overlay({"kv.keep_fraction": refused})


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *((word, True) for word in ("true", "Yes", "on", True, "1")),
        *((word, False) for word in ("false", "NO", "off", False, 0)),
    ],
)
def test_booleans_are_read_in_every_spelling(word: object, value: bool) -> None:
    assert EngineConfig().overlay({"kv.elastic": word}).kv.elastic is value


@pytest.mark.parametrize("word", ["maybe", "2", "", None])
def test_other_words_are_no_booleans(word: object) -> None:
    with pytest.raises(ConfigError, match="write true or false"):
        EngineConfig().overlay({"kv.elastic": word})


@pytest.mark.parametrize(("yaml", "word"), [(True, "on"), (False, "off")])
def test_yaml_reads_on_and_off_as_booleans(yaml: bool, word: str) -> None:
    assert EngineConfig().overlay({"io.direct": yaml}).io.direct == word


@pytest.mark.parametrize("value", ["nan", "inf", True, "0,5"])
def test_a_number_is_finite_and_has_a_decimal_point(value: object) -> None:
    with pytest.raises(ConfigError, match=r"write a (finite )?number"):
        EngineConfig().overlay({"kv.keep_fraction": value})
