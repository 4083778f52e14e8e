"""What is on the screen without scrolling, on a laptop and on a phone, and what is cut off."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import pytest

from dashboard.charts.front import front_figure
from dashboard.charts.predictions import predicted_figure
from dashboard.charts.studies import history_figure, spent_figure
from dashboard.charts.trials import parallel_figure
from dashboard.frames.front import FRONT, KNEE
from tests.dashboard.test_browser import heading_of, open_page, serving, settle
from tuner.pareto.front import Front

pytestmark = pytest.mark.chromium
LAPTOP, PHONE = (1280, 900), (390, 844)
SIZES = [(340, 400), (520, 430), (1100, 600)]
# Texts of a chart, with the box of what holds them: what lies outside is cut off.
CUT = """() => {
  const cut = [];
  for (const chart of document.querySelectorAll('.js-plotly-plot')) {
    const room = chart.getBoundingClientRect();
    for (const text of chart.querySelectorAll('svg text')) {
      const box = text.getBoundingClientRect();
      if (box.width === 0) continue;
      if (box.left < room.left - 1 || box.right > room.right + 1
          || box.top < room.top - 1 || box.bottom > room.bottom + 1) cut.push(text.textContent);
    }
  }
  return cut;
}"""


@pytest.fixture(scope="module")
def address(storage: str) -> Iterator[str]:
    """A running dashboard."""
    with serving(storage) as url:
        yield url


def open_front(browser: Any, address: str, size: tuple[int, int], **settings: Any) -> Any:
    page = open_page(browser, f"{address}/front?study=small", *size, **settings)
    page.locator(".js-plotly-plot .xtick text").first.wait_for(timeout=30_000)
    settle(page)
    return page


def on_screen(page: Any, element: Any) -> bool:
    """Whether all of it is seen without scrolling."""
    box, size = element.bounding_box(), page.viewport_size
    return bool(
        box
        and box["x"] >= 0
        and box["y"] >= 0
        and box["x"] + box["width"] <= size["width"]
        and box["y"] + box["height"] <= size["height"]
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_chart_axes_and_trial_are_seen_without_scrolling(
    browser: Any,
    address: str,
    size: tuple[int, int],
    scheme: Any,
    front: Front,
):
    page = open_front(browser, address, size, color_scheme=scheme)
    chart = page.locator(".js-plotly-plot").first
    assert on_screen(page, chart)
    assert on_screen(page, chart.locator(".xtitle"))
    assert on_screen(page, chart.locator(".ytitle"))
    assert on_screen(page, page.locator("h3", has_text="Trial ").first)
    for words in ("throughput", "time per token", "quality (with"):
        assert on_screen(page, page.locator("p", has=page.locator("strong"), has_text=words).first)
    assert page.evaluate(CUT) == []
    if size == LAPTOP:
        assert on_screen(page, page.get_by_role("button", name="Export as yaml"))
        assert on_screen(page, page.get_by_role("slider").first)
    page.close()


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_click_changes_what_is_on_the_screen_and_in_the_address(
    browser: Any,
    address: str,
    size: tuple[int, int],
):
    page = open_front(browser, address, size)
    before, shown = heading_of(page), figures_of(page)
    points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
    for number in range(points.count()):
        points.nth(number).click(force=True)
        settle(page)
        if heading_of(page) != before:
            break
    after = heading_of(page)
    assert after != before
    assert figures_of(page) != shown
    assert on_screen(page, page.locator("h3", has_text="Trial ").first)
    assert on_screen(
        page, page.locator("p", has=page.locator("strong"), has_text="throughput").first
    )
    trial = after.split()[1]
    assert f"trial={trial}" in page.url
    link = open_page(browser, page.url, *size)
    assert heading_of(link) == after
    link.close()
    page.close()


def figures_of(page: Any) -> str:
    return str(
        page.locator("p", has=page.locator("strong"), has_text="throughput").first.inner_text()
    )


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_no_chart_of_a_study_is_cut(browser: Any, address: str, size: tuple[int, int]):
    for name in ("", "trials"):
        page = open_page(browser, f"{address}/{name}?study=small", *size)
        page.locator(".js-plotly-plot svg text").first.wait_for(timeout=30_000)
        settle(page)
        assert page.evaluate(CUT) == [], name
        page.close()


def large_charts() -> list[Any]:
    """Charts of figures with many digits."""
    rows = [
        {"number": 0, "kind": KNEE, "output_tps": 666_032.4969, "tpot_ms": 666_032.4969},
        {"number": 1, "kind": FRONT, "output_tps": 123_456.789, "tpot_ms": 0.00123},
    ]
    points = pd.DataFrame(rows).assign(quality=0.987654, probability=1.0, settings="a = b")
    for name in ("output_tps", "tpot_ms", "quality"):
        points[f"{name}_low"], points[f"{name}_high"] = points[name] * 0.9, points[name] * 1.1
    pairs = pd.DataFrame(
        [(0, 666_032.4969, 123_456.789, 1e5, 7e5), (1, 1.0, 2.0, 1.0, 3.0)],
        columns=["number", "predicted", "measured", "measured_low", "measured_high"],
    )
    history = points[["number", "output_tps", "tpot_ms", "quality"]].assign(minutes=[1e5, 2e5])
    spent = pd.DataFrame({"stage": ["predicting configs by replay"], "seconds": [666_032.4969]})
    table = points[["output_tps", "tpot_ms", "quality"]].assign(
        **{"cache.expert_bytes": [12_189_696_000, 66_032_496]}
    )
    return [
        front_figure(points, "output_tps", "tpot_ms", "quality", 0),
        front_figure(points, "tpot_ms", "quality"),
        predicted_figure(pairs, "output_tps"),
        history_figure(history, "output_tps"),
        spent_figure(spent),
        parallel_figure(table[["cache.expert_bytes", "output_tps", "tpot_ms"]], "output_tps"),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_large_numbers_are_not_cut_at_any_size(browser: Any, size: tuple[int, int]):
    width, height = size
    page = browser.new_page(viewport={"width": width, "height": height})
    for figure in large_charts():
        figure.update_layout(width=width, height=height)
        page.set_content(figure.to_html(include_plotlyjs=True))
        page.locator(".js-plotly-plot svg text").first.wait_for(timeout=30_000)
        page.wait_for_timeout(300)
        assert page.evaluate(CUT) == [], figure.data[0].type
    page.close()
