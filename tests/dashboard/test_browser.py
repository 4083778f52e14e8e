"""The dashboard as a person meets it: `tune dashboard` in a real headless Chromium."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dashboard.app import PAGES
from tests.dashboard.test_plain import rename
from tests.requirements import require_program
from tuner.pareto.front import Front
from tuner.store.database import open_database
from tuner.store.outcome import TrialOutcome
from tuner.store.repository import Store

pytestmark = pytest.mark.chromium
# Nothing was drawn for 200 ms, or something moves all the time.
DRAWN = """() => new Promise(done => {
  let quiet = setTimeout(done, 200);
  setTimeout(done, 1500);
  new MutationObserver(() => { clearTimeout(quiet); quiet = setTimeout(done, 200); })
    .observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
})"""
ADDRESSES = ["", *(name for name, _, _ in PAGES[1:])]


@pytest.fixture(scope="module")
def address(storage: str) -> Iterator[str]:
    """A running dashboard."""
    with serving(storage) as url:
        yield url


@contextlib.contextmanager
def serving(storage: str) -> Iterator[str]:
    """`tune dashboard` on a store, for one block."""
    require_program("chromium")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    source = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "tuner", "dashboard", "--storage", storage]
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_up(f"{url}/_stcore/health")
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the dashboard did not come up")


def settle(page: Any) -> None:
    """Wait until the program behind the page has run."""
    page.locator("h1").first.wait_for(timeout=60_000)
    page.wait_for_timeout(300)
    page.locator('[data-test-script-state="notRunning"]').first.wait_for(
        state="attached", timeout=60_000
    )
    page.evaluate(DRAWN)


def open_page(
    browser: Any, url: str, width: int = 1400, height: int = 1200, **settings: Any
) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height}, **settings)
    page.goto(url)
    settle(page)
    return page


def heading_of(page: Any) -> str:
    return str(page.locator("h3", has_text="Trial ").first.inner_text())


def test_a_click_on_a_point_shows_its_trial_and_exports_it(
    browser: Any, address: str, tmp_path: Path
):
    page = open_page(browser, f"{address}/front?study=small")
    before = heading_of(page)
    assert "(recommended)" in before
    points = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
    points.first.wait_for()
    for number in range(points.count()):
        points.nth(number).click(force=True)
        settle(page)
        after = heading_of(page)
        if after != before:
            break
    assert after != before
    with page.expect_download() as download:
        page.get_by_role("button", name="Export as yaml").click()
    path = tmp_path / "picked.yaml"
    download.value.save_as(path)
    exported = yaml.safe_load(path.read_text())
    assert after.startswith(f"Trial {exported['provenance']['trial']}")
    page.close()


def test_a_limit_is_moved_by_keys_and_the_front_follows(browser: Any, address: str, front: Front):
    page = open_page(browser, f"{address}/front?study=small")
    members = f"within limits, {len(front.members)} on the front"
    page.get_by_text(members).first.wait_for()
    slider = page.get_by_role("slider").first
    slider.focus()
    page.keyboard.press("End")
    page.get_by_text("differ from the study's own").wait_for(timeout=20_000)
    settle(page)
    best = max(member.scores["quality"] for member in front.members)
    kept = sum(member.scores["quality"] >= best for member in front.members)
    page.get_by_text(re.compile(rf", {kept} on the front\.")).first.wait_for()
    page.close()


def test_a_running_study_is_drawn_again_and_what_was_chosen_stays(browser: Any, own_storage: str):
    store = Store(open_database(own_storage))
    study = store.study("small")
    store.set_study_state(study.id, "RUNNING")
    [first] = store.trials(study, [0])
    with serving(own_storage) as url:
        page = open_page(browser, f"{url}/front?study=small")
        page.get_by_label("Another trial").click()
        page.get_by_role("option", name="trial 0", exact=True).click()
        page.locator("h3", has_text="Trial 0").first.wait_for()
        complete = study.trials_by_state["COMPLETE"]
        trial = store.start_trial(study.id, 99, first.params)
        ended = TrialOutcome(
            "COMPLETE",
            scores=first.scores,
            violations=first.violations,
            configuration_id=first.configuration_id,
        )
        store.finish_trial(trial, ended)
        page.get_by_text(f"{complete + 1} trials,").first.wait_for(timeout=30_000)
        assert heading_of(page).startswith("Trial 0")
        page.close()
    store.database.close()


def test_three_objectives_are_drawn(browser: Any, address: str):
    page = open_page(browser, f"{address}/front?study=small")
    page.get_by_label("What the chart shows").click()
    page.get_by_role("option", name="three axes").click()
    page.locator(".js-plotly-plot .gl-container canvas").first.wait_for(timeout=30_000)
    assert page.get_by_text("WebGL is not supported").count() == 0
    page.close()


def test_every_page_is_reached_by_keys_alone(browser: Any, address: str):
    page = open_page(browser, f"{address}/?study=small")
    link = page.get_by_role("link", name="Trials")
    for _ in range(40):
        page.keyboard.press("Tab")
        if link.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    settle(page)
    assert urlsplit(page.url).path == "/trials"
    assert "study=small" in page.url
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_light_or_dark_of_the_reader(browser: Any, address: str, scheme: Any):
    page = open_page(browser, f"{address}/front?study=small", color_scheme=scheme)
    page.locator(".js-plotly-plot .xtick text").first.wait_for(timeout=30_000)
    ground, ink = page.evaluate(
        "() => { const style = getComputedStyle(document.querySelector('.stApp'));"
        " const text = getComputedStyle(document.querySelector('.js-plotly-plot .xtick text'));"
        " return [style.backgroundColor, text.fill]; }"
    )
    assert (brightness(ground) < 128) == (scheme == "dark")
    assert abs(brightness(ground) - brightness(ink)) > 80
    page.close()


def brightness(colour: str) -> float:
    return sum(int(part) for part in re.findall(r"\d+", colour)[:3]) / 3


def test_no_page_scrolls_sideways_or_asks_another_host(browser: Any, address: str):
    asked: set[str] = set()
    page = browser.new_page()
    page.on("request", lambda request: asked.add(request.url))
    page.on("websocket", lambda socket: asked.add(socket.url))
    for name in ADDRESSES:
        page.goto(f"{address}/{name}?study=small")
        for width in (1024, 390):
            page.set_viewport_size({"width": width, "height": 1000})
            settle(page)
            wide = page.evaluate(
                "() => Math.max(document.documentElement.scrollWidth,"
                " document.querySelector('[data-testid=\"stMain\"]').scrollWidth)"
            )
            assert wide <= width, name
    page.close()
    own = urlsplit(address).netloc
    hosts = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert len(asked) > 20
    assert hosts == {own}


def test_a_name_fetches_nothing_from_elsewhere(browser: Any, own_storage: str):
    # it was Markdown: a picture in it was fetched
    name = "![x](http://127.0.0.1:9/x.png) <img src=http://127.0.0.1:9/y.png>"
    rename(own_storage, name)
    with serving(own_storage) as url:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        settle(page)
        page.locator("h3", has_text=name).first.wait_for(timeout=20_000)
        assert asked
        assert not [one for one in asked if ":9/" in one]
        page.close()


def test_a_page_elsewhere_cannot_let_its_name_mean_the_dashboard(address: str):
    # DNS rebinding: the browser sends the page's own host name
    port = urlsplit(address).port
    handshake = (
        "GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\nOrigin: http://{host}:{port}\r\n\r\n"
    )
    for host, status in (("localhost", b"101"), ("127.0.0.1", b"101"), ("evil.example", b"403")):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(handshake.format(host=host, port=port).encode())
            assert client.recv(20).split()[1] == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_elsewhere_opens_no_connection_to_the_dashboard(address: str, origin: str):
    """A websocket needs no preflight: only its Origin tells."""
    handshake = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nOrigin: {origin}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", urlsplit(address).port), timeout=60) as client:
        client.sendall(handshake.encode())
        assert client.recv(20).split()[1] == b"403"
