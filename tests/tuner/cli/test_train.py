"""`tune train`: a child computes, the command prints."""

from dataclasses import replace
from pathlib import Path

from tests.engine.train.test_eviction import made
from tests.tuner.conftest import Tune


def test_the_command_prints_weights_and_other_evictions(tune: Tune, folder: Path):
    made(20).save(folder / "trace.npz")
    done = tune("train", "eviction", "trace.npz", "--trials", "2")
    assert done.code == 0, done.err
    for name in ("cache.options.weights: [0.2500", "hobbit", "lru", "lfu", "arc", "belady"):
        assert name in done.out
    document = tune("train", "eviction", "trace.npz", "--trials", "1", "--json").document
    assert set(document["hit_rates"]) == {"hobbit", "lru", "lfu", "arc", "belady"}


def test_what_cannot_be_trained_is_one_sentence(tune: Tune, folder: Path):
    done = tune("train", "eviction", "none.npz")
    assert done.code != 0
    assert "none.npz" in done.err
    replace(made(20), gate_inputs=None).save(folder / "trace.npz")
    done = tune("train", "predictor", "trace.npz", "-o", "learned.npz")
    assert (done.code, "no gate inputs" in done.err) == (2, True)
