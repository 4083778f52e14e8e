"""A mechanism's worth is the whole policy over the one without it, round by round."""

import pytest

from tests.tuner.bench.report.made import make_row
from tuner.bench.report.effects import mechanism_effects


def test_ratios_are_paired_with_the_whole_of_equal_settings():
    few, many = {"cache.expert_bytes": "25%"}, {"cache.expert_bytes": "50%"}
    rows = [
        make_row("scratchpipe", settings=few, decode_tps=[20.0, 10.0]),
        make_row("scratchpipe", settings=few, without="evict", decode_tps=[10.0, 5.0]),
        make_row("scratchpipe", settings=many, decode_tps=[90.0, 90.0]),
        make_row("scratchpipe", settings=many, without="evict", decode_tps=[30.0, 30.0]),
    ]
    first, second = mechanism_effects(rows)
    assert (first.mechanism, first.row) == ("evict", rows[0].name)
    assert first.without == rows[1].name
    ratio = first.ratios["decode_tps"]
    assert (ratio.value, ratio.low, ratio.high, ratio.n) == pytest.approx((2, 2, 2, 2))
    assert second.ratios["decode_tps"].value == pytest.approx(3)


def test_a_row_that_failed_has_no_ratio():
    whole = make_row("scratchpipe", decode_tps=[20.0])
    failed = make_row("scratchpipe", without="predict", error="it broke")
    (found,) = mechanism_effects([whole, failed])
    assert found.ratios == {}
    assert mechanism_effects([whole]) == []
