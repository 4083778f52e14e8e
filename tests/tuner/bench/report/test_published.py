"""Published ratios beside ours: reached or not, what bounds them, and when lower is better."""

from typing import Any

import pytest

from tests.tuner.bench.report.made import make_row, timed
from tuner.bench.report.published import PublishedComparison, compare_published, smaller_is_better
from tuner.definition.policies import PolicyFile, Published, load_policy, policy_names


def preset(metric: str, ratio: float, over: str | dict[str, Any] = "lru") -> PolicyFile:
    entry = Published(metric=metric, over=over, ratio=ratio, setting="theirs")
    return PolicyFile(description="d", engine={}, published=[entry])


def compare(metric: str, ratio: float, *rows: Any) -> PublishedComparison:
    presets = {"lru": load_policy("lru"), "scratchpipe": preset(metric, ratio)}
    (found,) = compare_published(rows, presets)
    return found


def reading(ms: float) -> dict[str, list[float]]:
    return {"oracle_bytes_per_token": [ms * 1e6] * 2, "read_bytes_per_s": [1e9] * 2}


LRU = make_row("lru", **timed(wall=20, busy=8))


def test_reached():
    found = compare("decode_tps", 1.9, LRU, make_row("scratchpipe", **timed(wall=10, busy=8)))
    assert (found.verdict, found.sentence) == ("reached", "reached")
    assert found.measured is not None
    assert found.measured.value == pytest.approx(2.0)
    assert found.baseline == "lru"


def test_not_reached_but_possible_names_the_bound():
    row = make_row("scratchpipe", **timed(wall=10, busy=8), **reading(3))
    found = compare("decode_tps", 2.2, LRU, row)
    assert (found.verdict, found.bottleneck) == ("not reached", "compute")
    assert found.limit_ratio == pytest.approx(20 / 8)
    assert found.sentence.startswith(
        "not reached; the bound is 2.5: this row's own work takes 8 ms"
    )


def test_not_reached_and_out_of_reach():
    row = make_row("scratchpipe", **timed(wall=10, busy=4), **reading(9))
    found = compare("decode_tps", 2.5, LRU, row)
    assert found.bottleneck == "transfer"
    assert found.limit_ratio == pytest.approx(20 / 9)
    assert "not reached, and no policy could: the bound is 2.22" in found.sentence
    assert "Belady" in found.sentence


def test_the_cost_of_deciding_is_no_reason_to_say_that_no_policy_could():
    row = make_row("scratchpipe", **timed(wall=10, busy=8, policy=4))
    found = compare("decode_tps", 4.0, LRU, row)
    assert found.limit_ratio == pytest.approx(2.5)
    assert found.sentence.startswith("not reached; the bound is 2.5")


@pytest.mark.parametrize(
    ("wall", "ratio", "verdict", "says"),
    [
        (10, 0.526, "reached", "reached"),
        (15, 0.526, "not reached", "not reached; the bound is 0.4"),
        (15, 0.3, "not reached", "no policy could: the bound is 0.4"),
    ],
)
def test_of_times_less_is_better(wall: float, ratio: float, verdict: str, says: str):
    found = compare("tpot_ms", ratio, LRU, make_row("scratchpipe", **timed(wall=wall, busy=8)))
    assert found.limit_ratio == pytest.approx(8 / 20)
    assert found.verdict == verdict
    assert says in found.sentence


def test_a_step_of_several_sequences_is_bounded_as_a_step():
    row = make_row("scratchpipe", **{**timed(wall=10, busy=8), "tpot_ms": [40.0, 40.0]})
    found = compare("tpot_ms", 0.5, LRU, row)
    assert found.limit_ratio == pytest.approx(40 * 8 / 10 / 20)


def test_the_interval_may_hold_what_the_mean_does_not_reach():
    rows = (
        make_row("lru", decode_tps=[10.0, 10.0]),
        make_row("scratchpipe", decode_tps=[19.0, 20.0]),
    )
    assert compare("decode_tps", 2.0, *rows).verdict == "within the interval"
    faster = (make_row("lru", tpot_ms=[10.0, 10.0]), make_row("scratchpipe", tpot_ms=[5.0, 5.5]))
    assert compare("tpot_ms", 0.5, *faster).verdict == "within the interval"
    assert compare("tpot_ms", 0.6, *faster).verdict == "reached"


def test_no_bound_is_claimed_where_the_time_split_says_nothing():
    rows = (make_row("lru", prefill_tps=[10.0]), make_row("scratchpipe", prefill_tps=[11.0]))
    found = compare("prefill_tps", 2.0, *rows)
    assert found.limit_ratio is None
    assert "no bound is known" in found.sentence


def test_what_is_missing_is_named():
    alone = compare("decode_tps", 2.0, make_row("scratchpipe", decode_tps=[1.0]))
    assert alone.sentence == "not measured: add lru to --policies"
    failed = compare("decode_tps", 2.0, make_row("lru", error="e"), make_row("scratchpipe"))
    assert failed.sentence == "not measured: lru failed"


def test_settings_are_the_same_row_without_a_mechanism():
    presets = {"klotski": load_policy("klotski")}
    four = make_row("klotski", output_tps=[30.0, 30.0])
    (found,) = compare_published([four], presets)
    assert found.sentence == "not measured: add --set batch.count=1,4"
    one = make_row("klotski", settings={"batch.count": 1}, output_tps=[10.0, 10.0])
    (found,) = compare_published([one, four], presets)  # the row of one is its own baseline
    assert (found.row, found.baseline) == (four.name, one.name)
    assert (found.over, found.verdict) == ("batch.count = 1", "not reached")
    assert found.measured is not None
    assert found.measured.value == pytest.approx(3.0)
    part = make_row("klotski", without="batch", config=one.asked, output_tps=[9.0])
    (found,) = compare_published([four, part], presets)
    assert found.baseline == "klotski without batch"


def test_a_baseline_has_equal_settings():
    few, many = {"cache.expert_bytes": "25%"}, {"cache.expert_bytes": "50%"}
    rows = (
        make_row("lru", settings=many, decode_tps=[50.0]),
        make_row("lru", settings=few, decode_tps=[10.0]),
        make_row("scratchpipe", settings=few, decode_tps=[20.0]),
    )
    assert compare("decode_tps", 2.0, *rows).baseline == rows[1].name


def test_every_published_figure_can_be_compared():
    for name in policy_names():
        for entry in load_policy(name).published:
            assert isinstance(entry.over, dict) or entry.over in policy_names()
            assert (entry.ratio < 1) == smaller_is_better(entry.metric)
            assert entry.metric in ("decode_tps", "prefill_tps", "output_tps", "tpot_ms")
