"""Figures show what was measured and can be told apart without colour."""

from tests.tuner.bench.report.made import make_document, make_row, timed
from tuner.bench.report.charts import curve_figure, split_figure
from tuner.bench.report.curves import cache_curves
from tuner.bench.report.tables import PARTS


def fraction(text: str) -> dict[str, str]:
    return {"cache.expert_bytes": text}


def test_a_curve_needs_two_shares_of_one_policy():
    rows = [
        make_row("lru", settings=fraction("50%"), decode_tps=[4.0, 6.0]),
        make_row("lru", settings=fraction("10%"), decode_tps=[1.0, 3.0]),
        make_row("scratchpipe", settings=fraction("10%"), decode_tps=[3.0]),
        make_row("scratchpipe", settings={"cache.expert_bytes": "4096"}, decode_tps=[3.0]),
    ]
    document = make_document(*rows)
    (curve,) = cache_curves(document)
    assert curve.name == "lru"
    assert [(p.percent, p.speed.value) for p in curve.points] == [(10, 2), (50, 5)]
    figure = curve_figure(document)
    assert list(figure.data[0].x) == [10, 50]
    low, high = figure.layout.xaxis.range
    assert low <= 10
    assert high >= 75
    assert curve_figure(make_document(*rows[2:])) is None


def test_curves_differ_in_more_than_colour():
    rows = [
        make_row(name, settings=fraction(text), decode_tps=[3.0])
        for name in ("lru", "scratchpipe", "fate")
        for text in ("10%", "75%")
    ]
    traces = curve_figure(make_document(*rows)).data
    assert len({trace.marker.symbol for trace in traces}) == 3
    assert len({trace.line.dash for trace in traces}) == 3


def test_bars_stack_the_parts_of_each_row():
    document = make_document(make_row("lru", **timed(wall=20, busy=8, policy=1)))
    figure = split_figure(document)
    assert [trace.name for trace in figure.data] == list(PARTS)
    assert sum(trace.x[0] for trace in figure.data) == 20
    assert figure.layout.barmode == "stack"
    assert split_figure(make_document(make_row("lru", output_tps=[1.0]))) is None
